"""ReLU with an l1 penalty: its loss against plain autograd, p-annealing, recovery."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.kernels.encoder import MAX_DENSITY
from salve_plugin.discover.learners.base import L0_TOLERANCE, Learner, Start, Step, Tensors
from salve_plugin.discover.learners.relu_l1 import FIRST_DENSITY, ReluL1
from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from tests.discover.learners.conftest import Planted

HalfTrained = Callable[..., tuple[Tensors, Step]]


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(ReluL1())


def gradients(loss: Tensor, t: Tensors) -> list[Tensor]:
    return list(
        torch.autograd.grad(loss, [tensor for tensor in t.values() if tensor.requires_grad])
    )


@pytest.mark.parametrize("bias", [0.6, 0.0], ids=["dense", "sparse"])
def test_the_loss_and_its_gradients_are_those_of_its_formula(
    half_trained: HalfTrained, bias: float
) -> None:
    """At a share of active latents above MAX_DENSITY products are dense, below they are sparse."""
    t, step = half_trained(ReluL1())
    t["encoder_bias"].data += bias
    step = replace(step, weight=2.0)
    code = (step.x @ t["encoder_weight"].T + t["encoder_bias"]).relu()
    share = float((code > 0).double().mean())
    assert share > MAX_DENSITY if bias else 0 < share < MAX_DENSITY
    back = code @ t["atoms"] + t["decoder_bias"]
    formula = ((step.x - back).square().sum() + 0.3 * 2.0 * code.sum()) / len(step.x)
    outcome = ReluL1(l1=0.3).loss(t, step)
    torch.testing.assert_close(outcome.loss, formula)
    assert outcome.active.tolist() == (code > L0_TOLERANCE).sum(0).tolist()
    torch.testing.assert_close(gradients(outcome.loss, t), gradients(formula, t))


@pytest.mark.parametrize("n_rows", [500, 1000])
def test_each_latent_is_active_in_three_rows_of_a_hundred_at_first(
    n_rows: int, flat: "Planted"
) -> None:
    rows = (flat.rows - flat.rows.mean(0))[:n_rows]
    random = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(40, 20, generator=random), dim=1)
    t = ReluL1().prepare(Start(rows, atoms, 0.7, random))
    pre = torch.addmm(t["encoder_bias"], rows, t["encoder_weight"].T).detach()
    # the row on the threshold may be on either side of it by rounding
    active = (pre > 1e-5).sum(0)
    assert active.tolist() == [round(FIRST_DENSITY * n_rows)] * 40
    # the sample that calibrates the encoder's gain has the same code, but for the gain
    code = ReluL1().initial_code(rows @ atoms.T)
    torch.testing.assert_close(0.7 * code, pre.relu(), rtol=1e-4, atol=1e-5)


def test_no_latent_starts_silent_however_few_rows_are_different(flat: "Planted") -> None:
    few = (flat.rows - flat.rows.mean(0))[:5].repeat(60, 1)
    random = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(40, 20, generator=random), dim=1)
    code = ReluL1().initial_code(few @ atoms.T)
    assert ((code > 0).sum(0) >= 60).all()  # the copies of one row at least


def test_the_penalty_rises_from_nothing_to_its_weight(
    check_warm_up: Callable[[Learner, Learner], None],
) -> None:
    check_warm_up(ReluL1(l1=0.3), ReluL1(l1=0.0))


def test_annealing_changes_the_shape_of_the_penalty_but_not_its_size(
    half_trained: HalfTrained,
) -> None:
    """Its derivative in a code z is in proportion to p z^(p − 1): it spares large codes."""
    t, step = half_trained(ReluL1())
    plain, annealed = ReluL1(l1=0.3), ReluL1(l1=0.3, final_p=0.4)
    early, late = replace(step, progress=0.4), replace(step, progress=0.999)
    assert gradients(annealed.loss(t, early).loss, t)[0].equal(
        gradients(plain.loss(t, early).loss, t)[0]
    )
    torch.testing.assert_close(annealed.loss(t, late).loss, plain.loss(t, late).loss)
    code = (step.x @ t["encoder_weight"].T + t["encoder_bias"]).relu()
    assert bool((code[code > 0] > 1e-3).all())  # the derivative at zero would be infinite
    powers = code[code > 0].pow(0.4).sum()
    scale = 0.3 * code.sum().detach() / powers.detach() / len(step.x)
    back = code @ t["atoms"] + t["decoder_bias"]
    formula = (step.x - back).square().sum() / len(step.x) + scale * powers
    torch.testing.assert_close(gradients(annealed.loss(t, late).loss, t), gradients(formula, t))


def test_the_exponent_falls_in_ten_equal_updates(half_trained: HalfTrained) -> None:
    """Seen by the derivative of the penalty, which stays the same between two updates."""
    t, step = half_trained(ReluL1())
    learner = ReluL1(l1=0.3, final_p=0.5)
    seen = [
        float(gradients(learner.loss(t, replace(step, progress=at / 500)).loss, t)[2].sum())
        for at in range(150, 500)
    ]
    assert len(set(seen)) == 11


@pytest.mark.slow
def test_planted_atoms_are_found_at_a_target_number_of_active_latents(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    found = train(ReluL1(), flat.rows, target_l0=3.0)
    assert float(found.meta["l0"]) == pytest.approx(3.0, rel=0.15)  # type: ignore[arg-type] # a number
    assert float((flat.cosines(found.atoms) > 0.9).float().mean()) > 0.9


@pytest.mark.parametrize("options", [{"l1": -1.0}, {"final_p": 0.0}, {"final_p": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ReluL1(**options)
