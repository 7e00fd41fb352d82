"""TopK: exact sparsity, its loss against plain autograd, recovery, and the revival of the dead."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS
from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from tests.discover.learners.conftest import Planted

HalfTrained = Callable[..., tuple[Tensors, Step]]


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(TopK(k=3))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    rows=st.integers(1, 6),
    latents=st.integers(1, 9),
    k=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_a_row_keeps_the_k_largest_of_its_positive_pre_activations(
    rows: int, latents: int, k: int, seed: int
) -> None:
    pre = torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed))
    code = TopK(k=k).activate({}, pre)
    for before, after in zip(pre, code, strict=True):
        kept = sorted((value for value in before.tolist() if value > 0), reverse=True)[:k]
        assert sorted(after[after != 0].tolist(), reverse=True) == kept
        assert bool(((after == before) | (after == 0)).all())


def test_the_loss_and_its_gradients_are_those_of_its_formula(half_trained: HalfTrained) -> None:
    learner = TopK(k=3)
    t, step = half_trained(learner)
    code = learner.encode(t, step.x)
    formula = (step.x - learner.decode(t, code)).square().sum(1).mean()
    outcome = learner.loss(t, step)
    torch.testing.assert_close(outcome.loss, formula)
    assert outcome.active.tolist() == (code != 0).sum(0).tolist()
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(formula, trained)
    )


def test_the_auxiliary_loss_is_added_with_its_weight_if_a_latent_is_dead(
    half_trained: HalfTrained,
) -> None:
    t, step = half_trained(TopK(k=2))
    some = replace(step, dead=torch.arange(12) < 4)

    def loss(aux: float, step: Step) -> float:
        return float(TopK(k=2, aux=aux, k_aux=2).loss(t, step).loss.detach())

    assert loss(1.0, step) == loss(0.0, step) == loss(0.0, some)
    extra = loss(1.0, some) - loss(0.0, some)
    assert extra > 0
    assert loss(0.25, some) - loss(0.0, some) == pytest.approx(extra / 4)


@pytest.mark.slow
def test_planted_atoms_are_found(train: Callable[..., Dictionary], flat: "Planted") -> None:
    found = train(TopK(k=2), flat.rows)
    assert float((flat.cosines(found.atoms) > 0.9).float().mean()) > 0.9
    assert float((found.encode(flat.rows) != 0).sum(1).max()) <= 2


@dataclass(frozen=True)
class Opposed(TopK):
    """TopK whose first latent starts opposite to one atom's rows, and silent on all of them."""

    name: ClassVar[str] = "opposed"

    def prepare(self, start: Start) -> Tensors:
        t = super().prepare(start)
        with torch.no_grad():
            for name in ("atoms", "encoder_weight"):
                t[name][0] = -t[name][0]
            t["encoder_bias"][0] = -1.0
        return t


def test_a_latent_opposite_to_the_data_comes_alive_with_the_auxiliary_loss_and_not_without(
    train: Callable[..., Dictionary], flat: "Planted", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEARNERS, "opposed", Opposed)

    def active(aux: float) -> int:
        found = train(Opposed(k=2, aux=aux), flat.rows, steps=400)
        return int((found.encode(flat.rows)[:, 0] > 0).sum())

    assert active(aux=0.0) == 0
    assert active(aux=1 / 32) > 0


def test_more_active_latents_than_there_are_is_refused(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    with pytest.raises(InputError, match=r"k = 31 .* of 30"):
        train(TopK(k=31), flat.rows)


@pytest.mark.parametrize("options", [{"k": 0}, {"aux": -0.1}, {"k_aux": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        TopK(**options)
