"""Logistic regression against Newton's method, and what holds at its optimum."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.control.concepts.logistic import logistic


def newton(x: Tensor, has: Tensor, strictness: float) -> Tensor:
    """Return the same optimum by damped Newton steps on the dense Hessian."""
    inputs = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    signs = torch.where(has, 1.0, -1.0).double()
    pull = torch.eye(inputs.shape[1]).double()
    pull[-1, -1] = 0
    parameters = torch.zeros(inputs.shape[1]).double()

    def loss(p: Tensor) -> Tensor:
        margins = signs * (inputs @ p)
        return strictness * torch.log1p(torch.exp(-margins)).sum() + p @ pull @ p / 2

    for _ in range(200):
        shares = torch.sigmoid(-signs * (inputs @ parameters))
        gradient = -strictness * inputs.T @ (signs * shares) + pull @ parameters
        curved = strictness * (inputs.T * (shares * (1 - shares))) @ inputs + pull
        step = torch.linalg.solve(curved + 1e-12 * torch.eye(len(curved)).double(), gradient)
        size = 1.0
        while size > 1e-6 and float(loss(parameters - size * step)) > float(loss(parameters)):
            size /= 2
        parameters = parameters - size * step
    return parameters


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), strictness=st.sampled_from([1e-3, 0.1, 10.0]))
def test_it_is_newtons_optimum(seed: int, strictness: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 5, generator=draw).double()
    has = x[:, 0] + torch.randn(40, generator=draw).double() > 0
    if bool(has.all()) or not bool(has.any()):
        return
    expected = newton(x, has, strictness)
    torch.testing.assert_close(logistic(x, has, strictness), expected, rtol=1e-3, atol=1e-5)
    # From wherever it begins: the problem is convex.
    start = torch.randn(6, generator=draw).double()
    again = logistic(x, has, strictness, start)
    torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-5)


def test_turning_the_labels_turns_the_sign() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(30, 4, generator=draw).double()
    has = x[:, 1] > 0
    torch.testing.assert_close(logistic(x, has, 1.0), -logistic(x, ~has, 1.0), rtol=1e-4, atol=1e-6)


def test_extreme_rows_stay_finite() -> None:
    x = torch.tensor([[1e8, 0.0], [-1e8, 1.0], [1e8, 1.0], [-1e8, 0.0]]).double()
    assert bool(logistic(x, torch.tensor([True, False, True, False]), 1e4).isfinite().all())
