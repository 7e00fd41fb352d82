"""Reconstruction error, sparsity and coherence against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.reconstruction import (
    dead_share,
    dense_share,
    density,
    density_histogram,
    fvu,
    histogram_edges,
    l0,
    nearest_cosines,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 100), rows=st.integers(2, 30), width=st.integers(1, 5))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_fvu_is_squared_error_over_squared_distance_from_the_mean(
    seed: int, rows: int, width: int
) -> None:
    x, error = draw(rows, width, seed=seed) + 100, draw(rows, width, seed=seed + 1)
    a, e = x.double().numpy(), error.double().numpy()
    assert fvu(x, error) == pytest.approx((e**2).sum() / ((a - a.mean(0)) ** 2).sum(), rel=1e-9)
    assert fvu(x, torch.zeros_like(x)) == 0
    assert fvu(x.double(), x.double() - x.double().mean(0)) == pytest.approx(1)


def test_rows_without_variance_and_nan_are_refused() -> None:
    with pytest.raises(InputError, match="3 rows of activations have no variance"):
        fvu(torch.ones(3, 2), torch.zeros(3, 2))
    with pytest.raises(InputError, match="activations hold 1 NaN"):
        fvu(torch.tensor([[math.nan], [1.0]]), torch.zeros(2, 1))
    with pytest.raises(InputError, match="errors hold 1 NaN"):
        fvu(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [math.inf]]))


@given(seed=st.integers(0, 100), tolerance=st.sampled_from([0.0, 0.5, 2.0]))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_l0_and_density_count_codes_above_the_tolerance(seed: int, tolerance: float) -> None:
    codes = draw(20, 6, seed=seed).clamp(min=-0.7)
    on = np.abs(codes.numpy()) > np.float32(tolerance)
    assert l0(codes, tolerance).tolist() == on.sum(1).tolist()
    assert density(codes, tolerance).tolist() == pytest.approx(on.mean(0).tolist())
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(l0(codes[:, order], tolerance), l0(codes, tolerance))


def test_a_code_at_the_tolerance_is_not_active() -> None:
    assert l0(torch.tensor([[0.5, -0.5, 0.51]]), 0.5).tolist() == [1]


def test_dead_latents_never_fire_and_dense_ones_in_more_than_a_tenth() -> None:
    densities = torch.tensor([0.0, 0.0, 0.05, 0.1, 0.11, 1.0], dtype=torch.float64)
    assert dead_share(densities) == pytest.approx(2 / 6)
    assert dense_share(densities) == pytest.approx(2 / 6)
    assert dense_share(densities, above=0.5) == pytest.approx(1 / 6)


def test_the_density_histogram_counts_living_latents_by_decade() -> None:
    edges = histogram_edges()
    assert edges[0] == -6
    assert edges[-1] == 0
    densities = torch.tensor([0.0, 1.0, 0.9, 10**-2.1, 1e-9], dtype=torch.float64)
    counts = density_histogram(densities)
    assert len(counts) == len(edges) - 1
    filled = {
        (round(float(edges[i]), 2), round(float(edges[i + 1]), 2)): int(n)
        for i, n in enumerate(counts)
        if n
    }
    assert int(density_histogram(torch.tensor([0.1], dtype=torch.float64))[19]) == 1  # to -1
    assert edges[20] == -1
    assert filled == {(-0.25, 0.0): 2, (-2.25, -2.0): 1, (-6.0, -5.75): 1}


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_the_histogram_is_numpys_for_densities_off_the_edges(seed: int) -> None:
    densities = 10 ** (
        -6 * torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    expected, _ = np.histogram(np.log10(densities.numpy()), bins=histogram_edges().numpy())
    assert density_histogram(densities).tolist() == expected.tolist()


@given(seed=st.integers(0, 100), n=st.integers(1, 9))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_nearest_cosines_are_those_of_a_loop_over_pairs(seed: int, n: int) -> None:
    atoms = draw(n, 4, seed=seed)
    a = atoms.double().numpy()
    expected = [
        max(
            (
                abs(a[i] @ a[j]) / np.linalg.norm(a[i]) / np.linalg.norm(a[j])
                for j in range(n)
                if j != i
            ),
            default=0.0,
        )
        for i in range(n)
    ]
    assert nearest_cosines(atoms).tolist() == pytest.approx(expected)


def test_nearest_cosines_do_not_depend_on_how_many_are_compared_at_once() -> None:
    atoms = draw(1500, 3)
    unit = torch.nn.functional.normalize(atoms.double(), dim=1)
    whole = (unit @ unit.T).abs().fill_diagonal_(0).amax(1)
    torch.testing.assert_close(nearest_cosines(atoms), whole.clamp(max=1))
