"""The auxiliary loss of dead latents: its value by hand, and who gets gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.discover.learners.auxiliary import (
    LATENT_SHARE,
    LEAK,
    LEAST_LATENTS,
    LEAST_PRODUCTS,
    Dead,
    apart,
    dead_loss,
)
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


def loss(t: Tensors, at: Step, error: Tensor, k_aux: int | None, *, signed: bool = False) -> Tensor:
    _, dead = apart(t, at.dead, 1.0, at.random)
    assert dead is not None
    return dead_loss(dead, at, error, k_aux, signed=signed)


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


@given(seed=st.integers(0, 1000), k_aux=st.sampled_from([None, 1, 3]), signed=st.booleans())
@settings(deadline=None, max_examples=15, derandomize=True)
def test_it_is_what_a_loop_over_rows_gives(seed: int, k_aux: int | None, signed: bool) -> None:
    """In float64, with the rows that take part: of a larger batch its first."""
    random, n, n_rows = torch.Generator().manual_seed(seed), 64, LEAST_PRODUCTS // 64
    x, error = torch.randn(2, n_rows + 9, 3, generator=random, dtype=torch.float64)
    weight, atoms = torch.randn(2, n, 3, generator=random, dtype=torch.float64)
    bias = torch.randn(n, generator=random, dtype=torch.float64)
    missed = 0.0
    for row, wanted in zip(x[:n_rows], error[:n_rows], strict=True):
        pre = weight @ row + bias
        scores = pre.abs() if signed else pre
        for j in scores.argsort(descending=True)[:k_aux].tolist():
            leak = LEAK if pre[j] < 0 and not signed else 1.0
            wanted = wanted - leak * pre[j] * atoms[j]
        missed += float(wanted.square().sum())
    size = float(error.square().sum(1).mean())
    dead = Dead(torch.arange(n), weight, bias, atoms)
    got = dead_loss(dead, Step(x, torch.ones(n, dtype=torch.bool)), error, k_aux, signed=signed)
    assert float(got) == pytest.approx(missed / n_rows / size, rel=1e-9)


def test_of_many_dead_latents_some_are_drawn_the_same_ones_with_the_same_seed() -> None:
    t = {
        "atoms": torch.zeros(2000, 2, requires_grad=True),
        "encoder_weight": torch.zeros(2000, 2, requires_grad=True),
        "encoder_bias": torch.zeros(2000, requires_grad=True),
    }
    mask = torch.arange(2000) % 2 == 0

    def drawn(seed: int, among: Tensor) -> list[int]:
        _, dead = apart(t, among, 1.0, torch.Generator().manual_seed(seed))
        assert dead is not None
        return dead.latents.tolist()

    several = [drawn(seed, mask) for seed in range(60)]
    assert {len(latents) for latents in several} == {int(LATENT_SHARE * 2000)}
    assert all(latents == sorted(set(latents)) for latents in several)
    assert drawn(0, mask) == several[0] != several[1]
    # All dead ones, and no others, have their turn: 60 draws miss one of eight with 0.03 %.
    turns = {latent for latents in several for latent in latents}
    assert turns <= set(range(0, 2000, 2))
    assert len(turns) > 980
    few = torch.arange(2000) < LEAST_LATENTS
    assert drawn(0, few) == list(range(LEAST_LATENTS))


def test_without_dead_latents_nothing_is_set_apart_and_without_error_it_is_zero() -> None:
    t, at = tensors(), step([True, False, False, False])
    for nobody in (
        apart(t, torch.zeros(4, dtype=torch.bool), 1.0, at.random),
        apart(t, at.dead, 0.0, at.random),
    ):
        same, dead = nobody
        assert same is t
        assert dead is None
    assert float(loss(t, at, 0 * at.x, 2)) == 0


@given(dead=st.lists(st.booleans(), min_size=6, max_size=6).filter(any), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_gradients_of_both_losses_add_up_as_if_nothing_had_been_set_apart(
    dead: list[bool], seed: int
) -> None:
    """The dead latents' share is added to the other gradient, whose sum must be the whole."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"encoder_weight": (6, 3), "encoder_bias": (6,), "atoms": (6, 3)}
    t = {
        name: torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    x = torch.randn(5, 3, generator=random, dtype=torch.float64)
    mask = torch.tensor(dead)

    def code(weight: Tensor, bias: Tensor, atoms: Tensor) -> Tensor:
        return ((x @ weight.T + bias).tanh() @ atoms).square().sum()

    whole, some = apart(t, mask, 1.0, random)
    assert some is not None
    assert some.latents.tolist() == mask.nonzero().flatten().tolist()
    ours = code(*(whole[name] for name in shapes)) + 2 * code(some.weight, some.bias, some.atoms)
    plain = code(*t.values()) + 2 * code(*(tensor[mask] for tensor in t.values()))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, list(t.values())), torch.autograd.grad(plain, list(t.values()))
    )
