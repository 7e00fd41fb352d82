"""The squared error of a reconstruction, with as few passes over the rows as it needs.

Left to autograd, reconstruction, error, its square and its gradient are matrices of the batch's
size that are each written and read again: with a small dictionary a large part of a step.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.kernels.sparse import Code, Support


def misfit(
    x: Float[Tensor, "rows width"],
    code: Code,
    atoms: Float[Tensor, "latents width"],
    bias: Float[Tensor, " width"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows width"]]:
    """Return the mean over rows of ‖x − z V − b_d‖², and the errors x − z V − b_d themselves.

    The mean is differentiable in the code, the atoms and the bias; the errors are constants.

    Args:
        x: rows; they get no gradient.
        code: z.
        atoms: V.
        bias: b_d.
    """
    mean, error = _Misfit.apply(x, code.values, atoms, bias, code.support)
    return mean, error


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


class _Misfit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, atoms: Tensor, bias: Tensor, support: Support | None
    ) -> tuple[Tensor, Tensor]:
        sums = values @ atoms if support is None else support.sum_latents(values, atoms)
        # In the memory of the sums, which nobody else has, unless autocast made them bfloat16.
        # Autograd records nothing inside `forward`, so that writing in place is allowed here.
        error = torch.sub(x, sums, out=sums if sums.dtype == x.dtype else None).sub_(bias)
        # The errors returned are those that the backward pass needs: a caller that changed them in
        # place would make autograd raise.
        ctx.save_for_backward(error, values, atoms)
        ctx.mark_non_differentiable(error)
        ctx.support, ctx.rough = support, torch.is_autocast_enabled(x.device.type)
        return _mean_square(error), error

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        error, values, atoms = ctx.saved_tensors
        support: Support | None = ctx.support
        # It multiplies what is small; the gradient of the rows, which is not, is never made.
        slope = gradient * (-2 / len(error))
        for_values = for_atoms = for_bias = None
        with torch.autocast(error.device.type, torch.bfloat16, enabled=ctx.rough):
            # What is held fixed, as the decoder is in one term of Gated, costs nothing.
            if ctx.needs_input_grad[1]:
                products = error @ atoms.T if support is None else support.products(error, atoms)
                for_values = products.to(values.dtype).mul_(slope)
            if ctx.needs_input_grad[2]:
                weights = values * slope
                sums = weights.T @ error if support is None else support.sum_rows(weights, error)
                for_atoms = sums.to(atoms.dtype)
        if ctx.needs_input_grad[3]:
            for_bias = error.sum(0).mul_(slope)
        return None, for_values, for_atoms, for_bias, None


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sums: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.sub(x, sums).sub_(bias)
        ctx.save_for_backward(error)
        ctx.mark_non_differentiable(error)
        return _mean_square(error), error

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = ctx.saved_tensors
        for_sums = error * (gradient * (-2 / len(error)))
        return None, for_sums, for_sums.sum(0)


def _mean_square(error: Tensor) -> Tensor:
    # A dot product needs no matrix of squares, which would be written and read once more.
    flat = error.flatten()
    return torch.dot(flat, flat) / len(error)
