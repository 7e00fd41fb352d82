"""The squared error and its gradients, against the plain formula."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.kernels.squared_error import misfit, squared_error


def randn(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def plain(x: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    return (x - sums - bias).square().sum(1).mean()


def same_gradients(ours: Tensor, formula: Tensor, trained: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, formula)
    torch.testing.assert_close(
        torch.autograd.grad(ours, trained), torch.autograd.grad(formula, trained)
    )


def test_it_is_the_mean_squared_length_of_the_errors() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    sums = torch.tensor([[1.0, 0.0], [-3.0, -4.5]])
    bias = torch.tensor([0.0, 0.5])
    code = Code(sums)
    for mean, error in (squared_error(x, sums, bias), misfit(x, code, torch.eye(2), bias)):
        assert error.tolist() == [[0.0, 1.5], [3.0, 4.0]]
        assert float(mean) == pytest.approx((2.25 + 25) / 2)
        assert not error.requires_grad
    assert sums.tolist() == [[1.0, 0.0], [-3.0, -4.5]]
    assert x.tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_its_gradients_are_those_of_the_plain_formula() -> None:
    random = torch.Generator().manual_seed(0)
    x, sums = randn(random, 7, 5), randn(random, 7, 5).requires_grad_()
    bias = randn(random, 5).requires_grad_()
    same_gradients(3 * squared_error(x, sums, bias)[0], 3 * plain(x, sums, bias), [sums, bias])


@given(
    n_rows=st.integers(1, 9),
    n_latents=st.integers(1, 9),
    share=st.floats(0, 1),
    lent=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_code_sparse_or_dense_has_the_gradients_of_the_plain_formula(
    n_rows: int, n_latents: int, share: float, lent: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    x, bias = randn(random, n_rows, 4), randn(random, 4).requires_grad_()
    atoms = randn(random, n_latents, 4).requires_grad_()
    mask = torch.rand(n_rows, n_latents, generator=random) < share
    support = Support.of_mask(mask, Scratch() if lent else None)
    values = randn(random, int(mask.sum())).requires_grad_()
    for code in (Code(values, support), Code(support.dense(values))):
        ours = 3 * misfit(x, code, atoms, bias)[0]
        formula = 3 * plain(x, support.dense(values) @ atoms, bias)
        same_gradients(ours, formula, [values, atoms, bias])


@pytest.mark.parametrize("k", [None, 3], ids=["dense", "sparse"])
def test_in_bfloat16_types_stay_and_gradients_are_near(k: int | None) -> None:
    random = torch.Generator().manual_seed(0)
    x, bias = torch.randn(64, 6, generator=random), torch.zeros(6, requires_grad=True)
    atoms = torch.randn(5, 6, generator=random).requires_grad_()
    columns = torch.rand(64, 5, generator=random).argsort(1)[:, : k or 5]
    support = Support.of_indices(columns, 5)
    values = torch.randn(columns.numel(), generator=random).requires_grad_()

    def gradients(autocast: bool) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            code = Code(support.dense(values)) if k is None else Code(values, support)
            mean, error = misfit(x, code, atoms, bias)
        assert error.dtype == torch.float32
        return torch.autograd.grad(mean, [values, atoms, bias])

    for rough, exact in zip(gradients(True), gradients(False), strict=True):
        assert rough.dtype == torch.float32
        assert 0 < float((rough - exact).norm() / exact.norm()) < 0.02
