"""The auxiliary loss of dead latents: its value by hand, and who gets gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from salve_plugin.discover.learners.auxiliary import LEAK, dead_loss
from salve_plugin.discover.learners.base import Step, Tensors


def tensors() -> Tensors:
    """Four latents that read and write the axes of a plane, the last two the other way."""
    axes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    return {
        "atoms": axes.clone().requires_grad_(),
        "encoder_weight": (0.5 * axes).requires_grad_(),
        "encoder_bias": torch.zeros(4, requires_grad=True),
        "decoder_bias": torch.zeros(2, requires_grad=True),
    }


def step(dead: list[bool]) -> Step:
    return Step(torch.tensor([[4.0, 2.0], [2.0, -4.0]]), torch.tensor(dead))


def pre_activations(t: Tensors, at: Step) -> Tensor:
    return (at.x @ t["encoder_weight"].T + t["encoder_bias"]).detach()


def loss(t: Tensors, at: Step, error: Tensor, k_aux: int, **options: object) -> Tensor:
    return dead_loss(t, at, pre_activations(t, at), error, k_aux, **options)  # type: ignore[arg-type] # as given


def test_it_is_the_share_of_the_error_that_dead_latents_leave_over() -> None:
    """Pre-activations are (2, 1, −2, −1) and (1, −2, −1, 2), the errors half of the rows.

    Latent 0 explains the first axis of both rows; of the error (2, 1), (1, −2) with squared norm 10
    it leaves 1 + 4.
    """
    t, at = tensors(), step([True, False, False, False])
    error = at.x / 2
    assert float(loss(t, at, error, 1).detach()) == pytest.approx(5 / 10)
    both = step([True, True, False, False])
    assert float(loss(t, both, error, 1).detach()) == pytest.approx((1 + 4) / 10)
    # with two of a row, latent 1 takes the 1 away and, negative, a tenth of the 2
    assert float(loss(t, both, error, 2).detach()) == pytest.approx((2 - LEAK * 2) ** 2 / 10)
    assert float(loss(t, both, error, 2, signed=True).detach()) == pytest.approx(0)
    assert float(loss(t, both, error, 1, signed=True).detach()) == pytest.approx((1 + 1) / 10)
    assert float(loss(t, both, error, 9).detach()) == float(loss(t, both, error, 2).detach())


def test_it_trains_dead_latents_only_and_holds_the_error_fixed() -> None:
    t, at = tensors(), step([False, False, True, False])
    source = torch.ones(2, 2, requires_grad=True)
    loss(t, at, source * at.x, 2).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert source.grad is None
    for name in ("atoms", "encoder_weight", "encoder_bias"):
        gradient = t[name].grad
        assert gradient is not None
        moved = gradient.reshape(4, -1).abs().sum(1) > 0
        assert moved.tolist() == [False, False, True, False], name


def test_others_can_take_part_instead_of_the_dead() -> None:
    t = tensors()
    dead, none = step([True, False, True, False]), step([False] * 4)
    among = torch.tensor([True, False, True, False])
    error = dead.x / 2
    assert torch.equal(loss(t, none, error, 2, among=among), loss(t, dead, error, 2))


def test_without_dead_latents_or_error_it_is_zero() -> None:
    t, at = tensors(), step([True, False, False, False])
    assert float(loss(t, replace(at, dead=torch.zeros(4, dtype=torch.bool)), at.x, 2)) == 0
    assert float(loss(t, at, 0 * at.x, 2)) == 0
