"""JumpReLU: gradients of thresholds against finite differences, both penalties, recovery."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.jumprelu import JumpReLU, above_threshold, jump, thresholds
from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from tests.discover.learners.conftest import Planted

HalfTrained = Callable[..., tuple[Tensors, Step]]


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(JumpReLU())


def test_the_estimated_gradient_of_a_threshold_is_that_of_the_expected_loss() -> None:
    """For (a − z(h))² + λ 1[h > θ] with h ~ N(0.3, 1), by exact integration on a fine grid.

    It must come from both sides of the threshold: from above alone it would be about half.
    """
    grid = torch.linspace(-6, 6, 400_001, dtype=torch.float64)
    density = torch.exp(-((grid - 0.3) ** 2) / 2)
    density /= density.sum()
    target, weight, width = 0.9, 0.4, 0.02

    def expected(theta: Tensor) -> Tensor:
        at = theta.expand_as(grid)
        lost = (target - jump(grid, at, width)).square() + weight * above_threshold(grid, at, width)
        return (density * lost).sum()

    for value in (0.1, 0.5, 1.2):
        theta = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        (estimate,) = torch.autograd.grad(expected(theta), theta)
        step = 0.01
        with torch.no_grad():
            slope = (expected(theta + step) - expected(theta - step)) / (2 * step)
        assert float(estimate) == pytest.approx(float(slope), rel=0.03)
        assert abs(float(slope)) > 0.02


def test_derivatives_of_the_two_functions_are_the_published_ones() -> None:
    """θ = 0.5, width 0.2: h = 0.45 and 0.55 lie in the window, 0.3 and 0.8 outside."""
    pre = torch.tensor([0.3, 0.45, 0.55, 0.8], requires_grad=True)
    theta = torch.full((4,), 0.5, requires_grad=True)
    code, on = jump(pre, theta, 0.2), above_threshold(pre, theta, 0.2)
    torch.testing.assert_close(code, torch.tensor([0, 0, 0.55, 0.8]))
    torch.testing.assert_close(on, torch.tensor([0.0, 0, 1, 1]))
    to_pre, to_theta = torch.autograd.grad(code.sum(), [pre, theta])
    torch.testing.assert_close(to_pre, torch.tensor([0.0, 0, 1, 1]))
    torch.testing.assert_close(to_theta, torch.tensor([0, -0.5 / 0.2, -0.5 / 0.2, 0]))
    to_pre, to_theta = torch.autograd.grad(on.sum(), [pre, theta], allow_unused=True)
    assert to_pre is None
    torch.testing.assert_close(to_theta, torch.tensor([0, -1 / 0.2, -1 / 0.2, 0]))


@pytest.mark.parametrize("bias", [0.0, -0.35], ids=["dense", "sparse"])
@pytest.mark.parametrize("aim", [None, 1.5])
def test_the_loss_and_its_gradients_are_those_of_its_formula(
    half_trained: HalfTrained, bias: float, aim: float | None
) -> None:
    """Whether products are sparse or dense, latents in the window below θ take part."""
    learner = JumpReLU(l0=0.3, aim=aim, bandwidth=0.15)
    t, step = half_trained(learner)
    t["encoder_bias"].data += bias
    step = replace(step, weight=2.0)
    pre = functional.linear(step.x, t["encoder_weight"], t["encoder_bias"])
    theta = thresholds(t).expand_as(pre)
    assert int(((pre - theta).abs() < 0.075)[pre < theta].sum()) > 0
    back = jump(pre, theta, 0.15) @ t["atoms"] + t["decoder_bias"]
    l0 = above_threshold(pre, theta, 0.15).sum(1).mean()
    penalty = l0 if aim is None else (l0 / aim - 1).square()
    formula = (step.x - back).square().sum(1).mean() + 0.3 * 2.0 * penalty
    # The penalty has no gradient in pre-activations, only in thresholds.
    outcome = learner.loss(t, step)
    torch.testing.assert_close(outcome.loss, formula)
    assert outcome.active.tolist() == (pre > theta).sum(0).tolist()
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    assert len(trained) == 5
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(formula, trained)
    )


def test_the_penalty_rises_from_nothing_to_its_weight(
    check_warm_up: Callable[[Learner, Learner], None],
) -> None:
    check_warm_up(JumpReLU(l0=0.3), JumpReLU(l0=0.0))


@pytest.mark.parametrize(("initial_l0", "active"), [(2, 2), (32, 3)], ids=["given", "a quarter"])
def test_thresholds_start_where_so_many_latents_are_active(initial_l0: int, active: int) -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 5, generator=random)
    learner = JumpReLU(initial_l0=initial_l0)
    t = learner.prepare(Start(rows, functional.normalize(rows[:12], dim=1), 0.7, random))
    code = learner.encode(t, rows)
    assert abs(int((code != 0).sum()) - 50 * active) <= 1  # the one at the threshold itself
    pre = learner.pre_activation(t, rows).detach() / 0.7
    assert abs(int((learner.initial_code(pre) != 0).sum()) - 50 * active) <= 1


@pytest.mark.slow
def test_planted_atoms_are_found_at_a_target_number_of_active_latents(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    found = train(JumpReLU(), flat.rows, target_l0=2.0, steps=800)
    assert float(found.meta["l0"]) == pytest.approx(2.0, rel=0.15)  # type: ignore[arg-type] # a number
    assert float((flat.cosines(found.atoms) > 0.9).float().mean()) > 0.8
    assert float(found.tensors["threshold"].min()) > 0


@pytest.mark.slow
def test_the_penalty_with_an_aim_comes_to_it_by_itself(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    for aim in (1.5, 4.0):
        found = train(JumpReLU(l0=3.0, aim=aim), flat.rows, steps=300)
        assert float(found.meta["l0"]) == pytest.approx(aim, rel=0.25)  # type: ignore[arg-type] # a number


def test_a_larger_weight_leaves_fewer_latents_active(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    l0 = [train(JumpReLU(l0=weight), flat.rows, steps=200).meta["l0"] for weight in (0.01, 0.1)]
    assert 1.2 * float(l0[1]) < float(l0[0])  # type: ignore[arg-type] # numbers


@pytest.mark.parametrize(
    "options", [{"l0": -0.1}, {"aim": 0.0}, {"bandwidth": 0.0}, {"initial_l0": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        JumpReLU(**options)
