"""The split of the error against least squares in numpy, and on errors of known kinds."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.dark_matter import dark_matter, linear_fit


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_the_split_is_that_of_least_squares_with_an_offset(seed: int) -> None:
    fit_x, x = draw(200, 4, seed=seed) + 3, draw(50, 4, seed=seed + 1) + 3
    mix = draw(4, 4, seed=seed + 2)

    def error_of(rows: Tensor) -> Tensor:
        return (rows @ mix).abs() + 0.3 * rows

    found = dark_matter(fit_x, error_of(fit_x), x, error_of(x))
    design = [np.c_[rows.double().numpy(), np.ones(len(rows))] for rows in (fit_x, x)]
    errors = [error_of(rows).double().numpy() for rows in (fit_x, x)]
    norms = [np.linalg.norm(error, axis=1, keepdims=True) for error in errors]
    left = []
    for fit_y, y in (errors, norms):
        weight = np.linalg.lstsq(design[0], fit_y, rcond=None)[0]
        left.append(((y - design[1] @ weight) ** 2).sum())
    spread = [((y - y.mean(0)) ** 2).sum() for y in (errors[1], norms[1])]
    total = ((x.double().numpy() - x.double().numpy().mean(0)) ** 2).sum()
    assert found.error_r2 == pytest.approx(1 - left[0] / spread[0], abs=1e-6)
    assert found.norm_r2 == pytest.approx(1 - left[1] / spread[1], abs=1e-6)
    assert found.fvu_nonlinear == pytest.approx(left[0] / total, rel=1e-6)
    assert found.fvu == pytest.approx((errors[1] ** 2).sum() / total, rel=1e-6)


def test_an_error_independent_of_the_activation_is_not_predictable() -> None:
    x, error = draw(12_000, 16, seed=0), draw(12_000, 16, seed=1)
    found = dark_matter(x[:8000], error[:8000], x[8000:], error[8000:])
    assert abs(found.error_r2) < 0.02
    assert abs(found.norm_r2) < 0.02
    assert found.fvu_nonlinear == pytest.approx(found.fvu, rel=0.02)


def test_missing_atoms_leave_a_linear_error(make_planted: Callable[..., Any]) -> None:
    x, atoms, codes, _ = make_planted(rows=4000, width=16, latents=32)
    missing = codes.clone()
    missing[:, 8:] = 0  # the dictionary knows the first eight atoms, and encodes them perfectly
    error = codes @ atoms - missing @ atoms
    found = dark_matter(x[:3000], error[:3000], x[3000:], error[3000:])
    assert found.error_r2 > 0.3
    assert found.fvu_nonlinear < 0.7 * found.fvu


def test_a_linear_error_is_predicted_altogether_and_no_error_has_no_share() -> None:
    x = draw(500, 5, seed=0)
    found = dark_matter(x[:400], 0.5 * x[:400] + 2, x[400:], 0.5 * x[400:] + 2)
    assert found.error_r2 == pytest.approx(1)
    assert found.fvu_nonlinear == pytest.approx(0, abs=1e-9)
    nothing = torch.zeros_like(x)
    found = dark_matter(x[:400], nothing[:400], x[400:], nothing[400:])
    assert math.isnan(found.error_r2)
    assert math.isnan(found.norm_r2)
    assert (found.fvu, found.fvu_nonlinear) == (0, 0)


def test_features_that_never_vary_do_not_break_the_fit() -> None:
    x = draw(300, 4, seed=0)
    x[:, 2] = 0
    weight, offset = linear_fit(x, x[:, :1] * 3 + 1)
    assert weight[:, 0].tolist() == pytest.approx([3, 0, 0, 0], abs=1e-6)
    assert offset.tolist() == pytest.approx([1], abs=1e-6)


def test_few_rows_get_a_ridge_penalty() -> None:
    x, y = draw(10, 30, seed=0).double(), draw(10, 2, seed=1).double()
    weight, offset = linear_fit(x, y)
    a, b = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    penalty = 1e-3 * np.trace(a.T @ a) / 30
    expected = np.linalg.solve(a.T @ a + penalty * np.eye(30), a.T @ b)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(offset, y.mean(0) - x.mean(0) @ weight)


def test_what_does_not_fit_is_refused() -> None:
    x = draw(10, 3, seed=0)
    with pytest.raises(InputError, match="shapes must agree"):
        dark_matter(x, x[:5], x, x)
    with pytest.raises(InputError, match="at least two rows"):
        dark_matter(x, x, x[:1], x[:1])
    with pytest.raises(InputError, match="errors hold 30 NaN"):
        dark_matter(x, x * torch.nan, x, x)
