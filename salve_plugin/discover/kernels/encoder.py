"""The encoder's product and its sparse gradients: one dense product in a step, forward only."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.kernels.selection import greater
from salve_plugin.discover.kernels.sparse import Code, Support


@torch.no_grad()
def pre_activations(
    x: Float[Tensor, "rows width"],
    weight: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    scratch: Scratch | None = None,
    *,
    rough: bool = False,
) -> Float[Tensor, "rows latents"]:
    """Return x Eᵀ + b_e without gradients, in the type of `x` even where autocast computes it.

    Args:
        x: rows.
        weight: E.
        bias: b_e.
        scratch: memory for the result.
        rough: leave it in the type of autocast: enough to choose by, too little for sums.
    """
    scratch = Scratch() if scratch is None else scratch
    if not torch.is_autocast_enabled(x.device.type):
        # Autograd refuses `out` for tensors that require grad, hence the decorator: the gradients
        # are those of `encode_at` and `encode_above`, which take this result as known.
        return torch.addmm(bias, x, weight.T, out=scratch.take(len(x), len(weight), x))
    # The same as autocast does, in memory that is kept.
    kind = torch.get_autocast_dtype(x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        less = scratch.take(len(x), len(weight), x, kind)
        torch.addmm(bias.to(kind), x.to(kind), weight.to(kind).T, out=less)
        return less if rough else scratch.take(len(x), len(weight), x).copy_(less)


MAX_DENSITY = 0.2
"""Share of active latents above which dense products are faster, measured at width 512."""


def encode_above(
    x: Float[Tensor, "rows width"],
    weight: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    pre: Float[Tensor, "rows latents"],
    bound: float | Float[Tensor, " latents"],
    scratch: Scratch | None = None,
) -> Code:
    """Return the pre-activations above a bound, differentiable in `weight` and `bias`.

    If that is more than a fifth, it returns all of them: whoever calls must give the others the
    value zero.

    Args:
        x: rows; they get no gradient.
        weight: encoder.
        bias: of the encoder.
        pre: all pre-activations, as from `pre_activations`.
        bound: of all latents, or of each.
        scratch: memory for gradients.
    """
    support = Support.of_mask(greater(pre, bound), scratch)
    if len(support.latents) > MAX_DENSITY * pre.numel():
        return Code(_Encode.apply(x, weight, bias, pre))
    return Code(encode_at(x, weight, bias, support, pre), support)


def encode_at(
    x: Float[Tensor, "rows width"],
    weight: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    support: Support,
    pre: Float[Tensor, "rows latents"] | None,
) -> Float[Tensor, " active"]:
    """Return the pre-activations at the support, differentiable in `weight` and `bias`.

    Args:
        x: rows; they get no gradient.
        weight: encoder.
        bias: of the encoder.
        support: which pre-activations.
        pre: all of them, x Eᵀ + b_e, computed without gradients; None if the support knows its own.
    """
    values: Tensor = _EncodeAt.apply(x, weight, bias, support, pre)
    return values


class _Encode(torch.autograd.Function):
    """All pre-activations, which are known already, with their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pre: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # Autograd runs `backward` outside the autocast of the loss, whose precision is kept for it.
        ctx.rough = torch.is_autocast_enabled(x.device.type)
        # A view: autograd takes an input that is returned itself for one changed in place.
        return pre.view_as(pre)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, torch.bfloat16, enabled=ctx.rough):
            # The one dense product of the backward pass: nothing before the rows learns, so that
            # they get no gradient.
            for_weight = (gradient.T @ x).to(x.dtype)
        return None, for_weight, gradient.sum(0), None


class _EncodeAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, support: Support, pre: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.support = support
        ctx.rough = torch.is_autocast_enabled(x.device.type)
        if support.known is not None:
            # A copy: what is returned becomes a part of this step's graph, and the support's own
            # numbers must not.
            return support.known.clone()
        assert pre is not None
        return support.gather(pre)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        support: Support = ctx.support
        # The rows get no gradient: nothing before them learns, and theirs would be a dense product.
        for_bias = gradient.new_zeros(support.n_latents).index_add_(0, support.latents, gradient)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=ctx.rough):
            for_weight = support.sum_rows(gradient, x)
        return None, for_weight, for_bias, None, None
