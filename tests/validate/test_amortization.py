"""Pursuit against sorting, against a loop in numpy, and the gap to an encoder."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.amortization import (
    SparseCoder,
    amortization_gap,
    gradient_pursuit,
    orthogonal_pursuit,
)
from salve_plugin.validate.reconstruction import fvu
from salve_plugin.validate.stability import random_atoms

PURSUITS: list[SparseCoder] = [gradient_pursuit, orthogonal_pursuit]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def each(k: int, rows: int) -> Tensor:
    return torch.full((rows,), k)


@pytest.mark.parametrize("pursuit", PURSUITS)
@given(seed=st.integers(0, 100), k=st.integers(0, 6), signed=st.booleans())
@settings(deadline=None, max_examples=25, derandomize=True)
def test_with_orthonormal_atoms_it_keeps_the_largest_projections(
    pursuit: SparseCoder, seed: int, k: int, signed: bool
) -> None:
    atoms = torch.linalg.qr(draw(6, 6, seed=seed)).Q
    x = draw(10, 6, seed=seed + 1)
    projections = x @ atoms.T
    kept = (projections.abs() if signed else projections).topk(k, dim=1).indices
    expected = torch.zeros_like(projections).scatter(1, kept, projections.gather(1, kept))
    expected = expected if signed else expected.clamp(min=0)
    torch.testing.assert_close(
        pursuit(x, atoms, each(k, 10), signed), expected, rtol=1e-6, atol=1e-8
    )


def by_loop(x: Tensor, atoms: Tensor, k: int, *, orthogonal: bool) -> np.ndarray[Any, Any]:
    """Return the signed code of one row as the algorithms are written."""
    target, directions = x.numpy(), atoms.numpy()
    code, chosen = np.zeros(len(directions)), list[int]()
    for _ in range(k):
        residual = target - code @ directions
        correlation = directions @ residual
        order = np.argsort(-np.abs(correlation))
        chosen.append(next(int(i) for i in order if i not in chosen))
        if orthogonal:
            code[chosen] = np.linalg.lstsq(directions[chosen].T, target, rcond=None)[0]
            continue
        gradient = np.zeros_like(code)
        gradient[chosen] = correlation[chosen]
        moved = gradient @ directions
        code = code + (moved @ residual) / (moved @ moved) * gradient
    return code


@pytest.mark.parametrize("pursuit", PURSUITS)
def test_it_is_the_published_algorithm(pursuit: SparseCoder) -> None:
    atoms, x = random_atoms(12, 8, seed=0).double(), draw(6, 8, seed=1)
    found = pursuit(x, atoms, each(4, 6), True)
    for row, code in zip(x, found, strict=True):
        expected = by_loop(row, atoms, 4, orthogonal=pursuit is orthogonal_pursuit)
        np.testing.assert_allclose(code.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pursuit", PURSUITS)
@given(seed=st.integers(0, 100), signed=st.booleans())
@settings(deadline=None, max_examples=10, derandomize=True)
def test_more_atoms_never_make_the_error_larger(
    pursuit: SparseCoder, seed: int, signed: bool
) -> None:
    # Many atoms in few dimensions: cutting codes at zero would often make the error larger.
    atoms, x = random_atoms(12, 3, seed=seed).double(), draw(10, 3, seed=seed + 1)
    codes = [pursuit(x, atoms, each(k, 10), signed) for k in range(9)]
    errors = torch.stack([(x - z @ atoms).square().sum(1) for z in codes])
    assert bool((errors.diff(dim=0) <= 1e-9).all())
    for k, code in enumerate(codes):
        assert int((code != 0).sum(1).max()) <= k
        assert signed or pursuit is orthogonal_pursuit or bool((code >= 0).all())


def test_every_row_gets_its_own_number_of_atoms() -> None:
    atoms, x = random_atoms(20, 8, seed=0).double(), draw(9, 8, seed=1)
    k = torch.arange(9) % 5
    for pursuit in PURSUITS:
        together = pursuit(x, atoms, k, True)
        assert ((together != 0).sum(1) == k).all()
        for row in range(9):
            alone = pursuit(x[row : row + 1], atoms, k[row : row + 1], True)[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-6, atol=1e-9)


def test_planted_codes_are_found_and_the_tighter_pursuit_has_the_smaller_error(
    make_planted: Callable[..., Any],
) -> None:
    x, atoms, codes, _ = make_planted(rows=100, width=32, latents=48)
    x, k = (x - 0.5).double(), (codes > 0).sum(1)
    errors = {
        pursuit: fvu(x, x - pursuit(x, atoms.double(), k, False) @ atoms.double())
        for pursuit in PURSUITS
    }
    assert errors[orthogonal_pursuit] <= errors[gradient_pursuit] < 0.05


def test_the_gap_is_what_a_bad_encoder_loses(make_planted: Callable[..., Any]) -> None:
    x, atoms, codes, _ = make_planted(rows=200, width=32, latents=32)
    offset = torch.full((32,), 0.5)
    best = amortization_gap(x, codes, atoms, offset)
    assert -0.05 < best <= 1e-9  # these codes are exact: pursuit can only be as good
    halved = amortization_gap(x, codes / 2, atoms, offset)
    found = gradient_pursuit(x.double() - 0.5, atoms, (codes > 0).sum(1), False)
    by_hand = fvu(x, x - 0.5 - codes / 2 @ atoms) - fvu(
        x, x.double() - 0.5 - found @ atoms.double()
    )
    assert halved == pytest.approx(by_hand, abs=1e-5)
    assert halved > 0.1
    tighter = amortization_gap(x, codes / 2, atoms, offset, pursuit=orthogonal_pursuit)
    assert tighter >= halved


@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_the_order_of_latents_does_not_matter(seed: int) -> None:
    atoms, x = random_atoms(10, 6, seed=seed), draw(20, 6, seed=seed + 1).float()
    codes = (x @ atoms.T).relu()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    gaps = [
        amortization_gap(x, codes[:, o], atoms[o], torch.zeros(6), tolerance=0.5)
        for o in (torch.arange(10), order)
    ]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    atoms, x = random_atoms(4, 3, seed=0), draw(5, 3)
    for rows, k, complaint in (
        (x[:, :2], each(1, 5), r"rows \(5, 2\), atoms \(4, 3\)"),
        (x, each(1, 4), r"k \(4,\) do not fit"),
        (x, each(5, 5), "k from 5 to 5 must lie between 0 and the number of atoms, 4"),
        (x * torch.nan, each(1, 5), "activations hold 15 NaN"),
    ):
        with pytest.raises(InputError, match=complaint):
            gradient_pursuit(rows, atoms, k, True)
    with pytest.raises(InputError, match=r"codes of shape \(5, 3\) do not fit 5 rows and 4 atoms"):
        amortization_gap(x, torch.zeros(5, 3), atoms, torch.zeros(3))
    assert gradient_pursuit(x[:0], atoms, each(1, 0), True).shape == (0, 4)
