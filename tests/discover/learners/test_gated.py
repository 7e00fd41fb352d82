"""Gated: the ReLU code as its special case, its three terms, no shrinkage, recovery."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import L0_TOLERANCE, Learner, Step, Tensors
from salve_plugin.discover.learners.gated import Gated
from salve_plugin.discover.learners.relu_l1 import ReluL1
from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from tests.discover.learners.conftest import Planted

HalfTrained = Callable[..., tuple[Tensors, Step]]


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(Gated())


def test_with_gain_one_and_bias_zero_it_is_the_relu_code(half_trained: HalfTrained) -> None:
    t, step = half_trained(Gated())
    neutral = t | {"log_gain": torch.zeros(12).double(), "magnitude_bias": torch.zeros(12).double()}
    code = Gated().encode(neutral, step.x)
    assert torch.equal(code, ReluL1().encode(t, step.x))
    assert torch.equal(code, Gated().encode(Gated().finished(neutral), step.x))
    assert not torch.equal(code, Gated().encode(t, step.x))


def test_the_gate_decides_what_is_active_and_the_second_path_how_strongly() -> None:
    """G = 2, b_m = 0.5: a gate of −0.1 is shut although 2 · (−0.1) + 0.5 is positive."""
    t = {"gain": torch.tensor([2.0]), "magnitude_bias": torch.tensor([0.5])}
    code = Gated().activate(t, torch.tensor([[-0.1], [0.1], [1.0]]))
    torch.testing.assert_close(code, torch.tensor([[0.0], [0.7], [2.5]]))
    t["magnitude_bias"] = torch.tensor([-1.0])  # and it may veto
    code = Gated().activate(t, torch.tensor([[-0.1], [0.1], [1.0]]))
    torch.testing.assert_close(code, torch.tensor([[0.0], [0.0], [1.0]]))


@pytest.mark.parametrize("bias", [0.0, -0.5], ids=["dense", "sparse"])
def test_the_loss_and_its_gradients_are_those_of_its_three_terms(
    half_trained: HalfTrained, bias: float
) -> None:
    learner = Gated(l1=0.3)
    t, step = half_trained(learner)
    t["encoder_bias"].data += bias
    step = replace(step, weight=2.0)
    gate = functional.linear(step.x, t["encoder_weight"], t["encoder_bias"])
    size = t["log_gain"].exp() * gate + t["magnitude_bias"]
    code = (gate > 0) * size.relu()
    assert int((code != 0).sum()) > 0
    error = step.x - code @ t["atoms"] - t["decoder_bias"]
    by_gate = step.x - gate.relu() @ t["atoms"].detach() - t["decoder_bias"].detach()
    terms = error.square().sum(1) + by_gate.square().sum(1) + 0.3 * 2.0 * gate.relu().sum(1)
    outcome = learner.loss(t, step)
    torch.testing.assert_close(outcome.loss, terms.mean())
    assert outcome.active.tolist() == (code > L0_TOLERANCE).sum(0).tolist()
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    assert len(trained) == 6
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(terms.mean(), trained)
    )


def test_the_penalty_rises_from_nothing_to_its_weight(
    check_warm_up: Callable[[Learner, Learner], None],
) -> None:
    check_warm_up(Gated(l1=0.3), Gated(l1=0.0))


def bias(found: Dictionary, rows: Tensor) -> float:
    """Return E‖x̂‖² / E[x̂·x] about the mean: 1 unless all codes are too small or too large.

    It is the relative reconstruction bias of Rajamanoharan et al. 2024.
    """
    x, back = rows - rows.mean(0), found(rows) - rows.mean(0)
    return float(back.square().sum() / (back * x).sum())


def slope(found: Dictionary, flat: "Planted") -> float:
    """Return how long codes are relative to what was planted, where an atom was found."""
    cosines = flat.truth @ found.atoms.T
    matched = cosines.max(1).values > 0.9
    code = found.encode(flat.rows)[:, cosines.argmax(1)][:, matched]
    planted = flat.codes[:, matched]
    assert int(matched.sum()) > 20
    return float((code * planted).sum() / planted.square().sum())


@pytest.mark.slow
def test_planted_atoms_are_found_and_their_codes_do_not_shrink(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    """An l1 penalty on the code itself shortens it; here it is on the gate.

    Slopes stay below 1 for another reason, too: latents that are active by mistake take a part.
    """
    # The weight that reaches an L0 is found from where it starts.
    gated = train(Gated(l1=0.1), flat.rows, target_l0=3.0)
    assert float(gated.meta["l0"]) == pytest.approx(3.0, rel=0.15)  # type: ignore[arg-type] # a number
    assert float((flat.cosines(gated.atoms) > 0.9).float().mean()) > 0.85
    rectified = train(ReluL1(), flat.rows, target_l0=3.0)
    assert bias(gated, flat.rows) == pytest.approx(1.0, abs=0.03)
    assert bias(rectified, flat.rows) < 0.9
    assert slope(gated, flat) > 0.83
    assert slope(rectified, flat) < 0.78


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="l1"):
        Gated(l1=-0.1)
