"""The registry of learners, and the linear l1 learner's loss."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from salve_plugin.discover.learners import LEARNERS, create, register
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.errors import InputError


@pytest.fixture
def _registry() -> Iterator[None]:
    before = dict(LEARNERS)
    yield
    LEARNERS.clear()
    LEARNERS.update(before)


@dataclass(frozen=True)
class Rectified(L1):
    """A learner from elsewhere: l1 behind a ReLU."""

    name: ClassVar[str] = "rectified"

    def activate(self, pre: Tensor) -> Tensor:
        return pre.relu()


@pytest.mark.usefixtures("_registry")
def test_a_learner_can_be_added_once_under_a_free_name() -> None:
    assert register(Rectified) is Rectified
    register(Rectified)  # the same class again: nothing is lost
    assert create("rectified", {"l1": 0.5}) == Rectified(l1=0.5)

    class Impostor(Rectified):
        """Wants the same name."""

    with pytest.raises(InputError, match="there is a learner 'rectified' already"):
        register(Impostor)


def test_an_unknown_learner_or_option_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"no learner 'topk'; choose one of \['l1'\]"):
        create("topk", {})
    with pytest.raises(InputError, match=r"no options \['k'\]; it has \['l1'\]"):
        create("l1", {"k": 32})
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite number of at least 0"):
            create("l1", {"l1": bad})


def test_every_learner_has_its_name_and_source() -> None:
    for name, learner in LEARNERS.items():
        assert learner.name == name
        assert learner.source


def test_the_loss_is_the_mean_of_squared_error_and_weighted_codes_per_row() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    back = torch.tensor([[1.0, 0.0], [3.0, 4.0]])  # squared errors 4 and 25
    code = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, -0.5]])  # l1 norms 3.5 and 0.5
    assert float(L1(l1=0.1).loss(x, code, back)) == pytest.approx((4 + 25) / 2 + 0.1 * 2.0)


def test_the_gradient_of_the_loss_is_its_formula() -> None:
    """dL/dz = (2 (x̂ − x) Vᵀ + l1 sign z) / N, dL/dE = (dL/dz)ᵀ x, dL/dV = 2 zᵀ (x̂ − x) / N."""
    random = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64, requires_grad=True)

    x, encoder, atoms = randn(7, 5), randn(3, 5), randn(3, 5)
    code = x @ encoder.T
    back = code @ atoms
    loss = L1(l1=0.3).loss(x, code, back)
    to_encoder, to_atoms = torch.autograd.grad(loss, [encoder, atoms])
    with torch.no_grad():
        of_code = (2 * (back - x) @ atoms.T + 0.3 * code.sign()) / 7
        torch.testing.assert_close(to_encoder, of_code.T @ x)
        torch.testing.assert_close(to_atoms, 2 * code.T @ (back - x) / 7)
