"""The closed form of ROME and MEMIT against constrained least squares, and what holds of both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_updates import draw
from torch import Tensor

from salve_plugin.control.writers.associations import written_update
from salve_plugin.errors import InputError


def change(keys: Tensor, residuals: Tensor, moment: Tensor, amount: float) -> Tensor:
    update = written_update(keys, residuals, moment, preservation=amount, ridge=0.0)
    return update.left @ update.right.T


def problem(seed: int, keys: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys (n, 8), residuals (n, 5) and a second moment of 8 inputs, at any scale."""
    inputs = scale * draw(seed, 40, 8) @ draw(seed + 1, 8, 8)
    return scale * draw(seed + 2, keys, 8), draw(seed + 3, keys, 5), inputs.T @ inputs / 40


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 6))
def test_the_least_change_among_all_that_map_the_keys(seed: int, count: int) -> None:
    keys, residuals, moment = problem(seed, count)
    delta = change(keys, residuals, moment, 0.0)
    torch.testing.assert_close(keys @ delta.T, residuals, rtol=1e-6, atol=1e-6)
    # Brute force: with the constraint solved by a particular solution and its null space N, the
    # objective is plain least squares in the coordinates along N.
    particular = torch.linalg.lstsq(keys, residuals).solution  # (inputs, outputs)
    null = torch.linalg.svd(keys, full_matrices=True).Vh[count:].T
    root = torch.linalg.cholesky(moment).T  # tr(D C Dᵀ) = |root Dᵀ|²
    along = torch.linalg.lstsq(root @ null, -root @ particular).solution
    expected = (particular + null @ along).T
    torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-6)
    cost = (delta @ moment * delta).sum()
    other = delta + (null @ draw(seed + 9, 8 - count, 5)).T
    torch.testing.assert_close(keys @ other.T, keys @ delta.T, rtol=1e-6, atol=1e-6)
    assert float((other @ moment * other).sum()) > float(cost)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**20), st.integers(1, 12), st.sampled_from([1e-3, 0.05, 1.0, 50.0]),
    st.sampled_from([1e-4, 1.0, 1e4]),
)  # fmt: skip
def test_the_formula_of_the_paper(seed: int, count: int, amount: float, scale: float) -> None:
    keys, residuals, moment = problem(seed, count, scale)
    delta = change(keys, residuals, moment, amount)
    unit = torch.stack([key @ torch.linalg.solve(moment, key) for key in keys]).mean()
    # In its own notation, keys as columns: R Kᵀ (λ C + K Kᵀ)⁻¹.
    system = amount * unit * moment + keys.T @ keys
    expected = torch.linalg.solve(system, keys.T @ residuals).T
    torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again = change(keys[order], residuals[order], moment, amount)
    torch.testing.assert_close(again, delta, rtol=1e-6, atol=1e-7 * float(delta.abs().max()))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([1e-4, 1.0, 1e4]))
def test_preservation_means_the_same_at_any_scale(seed: int, scale: float) -> None:
    keys, residuals, moment = problem(seed, 1, scale)
    shares = []
    for amount in (0.0, 0.05, 1.0, 1e6):
        written = keys @ change(keys, residuals, moment, amount).T
        shares.append(float((written / residuals).mean()))
    assert shares == pytest.approx([1, 1 / 1.05, 0.5, 1e-6], rel=1e-5)


def test_the_ridge_makes_up_for_missing_samples() -> None:
    keys, residuals = draw(0, 2, 8), draw(1, 2, 5)
    few = draw(2, 4, 8)
    moment = few.T @ few / 4
    with pytest.raises(InputError, match="more samples than inputs, or a ridge"):
        written_update(keys, residuals, moment, preservation=0.0, ridge=0.0)
    update = written_update(keys, residuals, moment, preservation=0.0, ridge=1e-4)
    written = keys @ (update.left @ update.right.T).T
    torch.testing.assert_close(written, residuals, rtol=1e-6, atol=1e-6)


def test_keys_that_contradict_each_other_are_refused() -> None:
    keys, residuals, moment = problem(0, 2)
    with pytest.raises(InputError, match="linearly dependent"):
        change(keys[[0, 0]], residuals, moment, 0.0)
    assert bool(change(keys[[0, 0]], residuals, moment, 0.05).isfinite().all())
    with pytest.raises(InputError, match="key is zero"):
        change(keys * 0, residuals, moment, 0.0)


@pytest.mark.parametrize(("amount", "ridge"), [(-1.0, 0.0), (float("nan"), 0.0), (0.0, -1.0)])
def test_amounts_out_of_range_are_named(amount: float, ridge: float) -> None:
    keys, residuals, moment = problem(0, 2)
    with pytest.raises(InputError, match=r"preservation|ridge"):
        written_update(keys, residuals, moment, preservation=amount, ridge=ridge)
