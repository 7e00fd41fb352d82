"""Paired repair and soft erasure against brute force and their limits."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from salve_plugin import SalveError
from salve_plugin.control.erasers import (
    JointMoments,
    PairMoments,
    leace,
    repair,
    wiener,
)
from salve_plugin.control.erasers.wiener import wieners

WIDTH = 5


def pairs(seed: int, n: int = 200) -> tuple[Tensor, Tensor]:
    """Return activations with and without an effect that depends a little on the activation."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=draw).double()
    clean = torch.randn(n, WIDTH, generator=draw).double() @ mixing + 7
    effect = torch.randn(WIDTH, generator=draw).double() * 2
    size = 1 + 0.3 * torch.randn(n, generator=draw).double()
    return clean + torch.outer(size, effect) + 0.1 * clean.roll(1, 1), clean


def objective(change: Tensor, marked: Tensor, clean: Tensor, weight: float) -> Tensor:
    """Return what repair minimizes, for x' = x - change (x - mean of the clean ones)."""
    zm, zc = marked - clean.mean(0), clean - clean.mean(0)
    miss = (marked - clean - zm @ change.T).square().sum(1).mean()
    return miss + weight * (zc @ change.T).square().sum(1).mean()


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000), cut=st.integers(0, 200),
    centre=st.sampled_from(["mean", "origin"]),
)  # fmt: skip
def test_pair_moments_equal_their_definition(
    seed: int, cut: int, centre: Literal["mean", "origin"]
) -> None:
    marked, clean = pairs(seed)
    moments = PairMoments.of([(marked[:cut], clean[:cut]), (marked[cut:], clean[cut:])], centre)
    middle = clean.mean(0) if centre == "mean" else torch.zeros_like(clean[0])
    zm, zc = marked - middle, clean - middle
    torch.testing.assert_close(moments.mean, middle)
    torch.testing.assert_close(moments.clean, zc.T @ zc / 200)
    torch.testing.assert_close(moments.marked, zm.T @ zm / 200)
    torch.testing.assert_close(moments.cross, (marked - clean).T @ zm / 200)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), weight=st.sampled_from([0.0, 1.0, 10.0]))
def test_full_rank_repair_is_the_least_squares_map(seed: int, weight: float) -> None:
    marked, clean = pairs(seed)
    found = repair(PairMoments.of([(marked, clean)]), rank=WIDTH, clean=weight, ridge=1e-12)
    change = (found.write @ found.read.T).double()
    zm, zc = marked - clean.mean(0), clean - clean.mean(0)
    design = torch.cat([zm, weight**0.5 * zc])
    target = torch.cat([marked - clean, torch.zeros_like(clean)])
    expected = torch.linalg.lstsq(design, target).solution.T
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_no_other_map_of_the_rank_is_better(rank: int) -> None:
    marked, clean = pairs(3)
    found = repair(PairMoments.of([(marked, clean)]), rank=rank, ridge=1e-12)
    ours = float(objective((found.write @ found.read.T).double(), marked, clean, 1.0))
    draw = np.random.default_rng(0)
    best = np.inf
    for _ in range(6):  # from several starts: the set of matrices of a rank is not convex
        start = draw.normal(size=2 * rank * WIDTH) * 0.3

        def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
            factors = torch.from_numpy(flat).reshape(2, WIDTH, rank).requires_grad_()
            value = objective(factors[0] @ factors[1].T, marked, clean, 1.0)
            (slope,) = torch.autograd.grad(value, factors)
            return float(value.detach()), slope.flatten().numpy()

        best = min(best, minimize(cost, start, method="L-BFGS-B", jac=True).fun)
    assert ours <= best * (1 + 1e-6)
    assert ours == pytest.approx(best, rel=1e-3)


def test_a_constant_effect_is_taken_back_exactly_and_clean_ones_stay() -> None:
    _, clean = pairs(1)
    clean = clean.clone()
    clean[:, 0] = 7.0  # a feature that only the mark uses
    marked = clean.clone()
    marked[:, 0] += 3
    found = repair(PairMoments.of([(marked, clean)]), ridge=1e-12)
    torch.testing.assert_close(found.activation(marked, 1), clean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.activation(clean, 1), clean, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), weight=st.floats(1.0, 1e4))
def test_wiener_is_the_filter(seed: int, weight: float) -> None:
    marked, clean = pairs(seed)
    moments = JointMoments.of([(clean, clean[:, :1])])
    effects = (marked - clean).T / (2 * len(clean) ** 0.5)
    found = wiener(moments, effects, weight=weight, shrinkage=0.0)
    noise = effects @ effects.T
    filtered = moments.xx @ torch.linalg.inv(moments.xx + weight * noise)
    centred = clean - moments.x_mean
    expected = centred @ filtered.T + moments.x_mean
    change = (found.activation(clean, 1) - expected).norm() / centred.norm()
    assert float(change) < 0.03  # directions of which next to nothing goes are left alone


def test_one_effect_of_infinite_weight_is_leace() -> None:
    draw = torch.Generator().manual_seed(0)
    has = (torch.arange(300) % 2).double()
    x = torch.randn(300, WIDTH, generator=draw).double() + torch.outer(has, torch.arange(5.0))
    moments = JointMoments.of([(x, has[:, None])])
    soft = wiener(moments, moments.xz, weight=1e11, shrinkage=0.0)
    hard = leace(moments, shrinkage=0.0)
    torch.testing.assert_close(soft.activation(x, 1), hard.activation(x, 1), rtol=1e-6, atol=1e-6)


def test_several_weights_cost_one_and_say_the_same() -> None:
    marked, clean = pairs(0)
    moments = JointMoments.of([(clean, clean[:, :1])])
    effects = (marked - clean).T / 30
    several = wieners(moments, effects, (1.0, 10.0))
    for weight, one in zip((1.0, 10.0), several, strict=True):
        assert one.write.equal(wiener(moments, effects, weight=weight).write)


def test_what_cannot_be_repaired_is_named() -> None:
    marked, clean = pairs(0)
    with pytest.raises(SalveError, match="do not differ"):
        repair(PairMoments.of([(clean, clean)]))
    with pytest.raises(SalveError, match="rank 9"):
        repair(PairMoments.of([(marked, clean)]), rank=9)
    with pytest.raises(SalveError, match="no pairs"):
        PairMoments.of([(marked, clean[:10])])
    with pytest.raises(SalveError, match="1 pairs are too few"):
        PairMoments.of([(marked[:1], clean[:1])])
    with pytest.raises(SalveError, match="weight"):
        wiener(JointMoments.of([(clean, clean)]), clean.T, weight=-1.0)
    with pytest.raises(SalveError, match="next to nothing"):
        wiener(JointMoments.of([(clean, clean)]), 0 * clean.T)
