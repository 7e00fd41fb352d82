"""The squared error and its gradients, against the plain formula."""

import pytest
import torch

from salve_plugin.discover.squared_error import squared_error


def test_it_is_the_mean_squared_length_of_the_errors() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    sums = torch.tensor([[1.0, 0.0], [-3.0, -4.5]])
    mean, error = squared_error(x, sums, torch.tensor([0.0, 0.5]))
    assert error.tolist() == [[0.0, 1.5], [3.0, 4.0]]
    assert float(mean) == pytest.approx((2.25 + 25) / 2)
    assert not error.requires_grad


def test_its_gradients_are_those_of_the_plain_formula() -> None:
    random = torch.Generator().manual_seed(0)
    x, sums = torch.randn(2, 7, 5, generator=random, dtype=torch.float64)
    bias = torch.randn(5, generator=random, dtype=torch.float64).requires_grad_()
    sums.requires_grad_()
    plain = 3 * (x - sums - bias).square().sum(1).mean()
    ours = 3 * squared_error(x, sums, bias)[0]
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [sums, bias]), torch.autograd.grad(plain, [sums, bias])
    )
