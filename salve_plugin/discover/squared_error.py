"""The squared error of a reconstruction, with as few passes over the rows as it needs."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def squared_error(
    x: Float[Tensor, "rows width"],
    sums: Float[Tensor, "rows width"],
    bias: Float[Tensor, " width"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows width"]]:
    """Return the mean over rows of ‖x − z V − b_d‖², and the errors themselves.

    The mean is differentiable in `sums` and `bias`; the errors are constants.

    Args:
        x: rows; they get no gradient.
        sums: z V.
        bias: b_d.
    """
    mean, error = _SquaredError.apply(x, sums, bias)
    return mean, error


class _SquaredError(torch.autograd.Function):
    # Written out, the same takes five matrices that are read once each: for small dictionaries
    # that is half of a step.
    @staticmethod
    def forward(ctx: Any, x: Tensor, sums: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.sub(x, sums).sub_(bias)
        ctx.save_for_backward(error)
        ctx.mark_non_differentiable(error)
        flat = error.flatten()
        return torch.dot(flat, flat) / len(x), error

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = ctx.saved_tensors
        for_sums = error * (gradient * (-2 / len(error)))
        return None, for_sums, for_sums.sum(0)
