"""The k largest pre-activations in float32, from a bfloat16 product that only rules out the rest.

A product in bfloat16 takes half the time of one in float32 where the processor has instructions for
it, and how far it can be off is known: few latents remain that may be among the k largest, and only
theirs are computed exactly. The result is that of float32 up to its own rounding.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from salve_plugin.discover.kernels.precision import has_bfloat16
from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.kernels.selection import largest
from salve_plugin.discover.kernels.sparse import Support

FROM_LATENTS = 4096
"""Number of latents from which the product saves more than the candidates cost."""

MOST_UNSURE = 0.25
"""Share of the rows whose candidates may turn out too few before screening is a waste of time."""

# In units of 2⁻⁸, with ρ = 1 + 2⁻⁸ by which rounding may lengthen a factor: ρ for the rounding of
# the weights, ρ² / 16 for the sum of 4096 products, 2⁻²⁴ each. That is 1.067, rounded up to 1.08.
PRODUCT_ERROR, ROUNDING = 1.08 * 2**-8, 2**-7
"""Largest error of a product relative to the norms of its factors, beside what rounding the rows
makes: the weights are rounded, by 2⁻⁸ at most, and at most 4096 terms added up in float32, by 2⁻¹²;
and of the sum with the bias, rounded twice."""

WIDEST = 4096
"""Most features for which that holds."""


def candidates_for(width: int) -> int:
    """Return how many candidates a row has for each of its k places: 4 at width 512, 8 at 2048.

    The error is in proportion to the norms of row and weight. Beside these, products with latents
    of other directions come the closer together the more features there are, by its root.
    """
    return max(2, round(math.sqrt(width / 32)))


def pays(x: Float[Tensor, "rows width"], n_latents: int, k: int) -> bool:
    """Say whether screening is faster than the product in float32, and allowed."""
    # Where the candidates are more than half of all latents, there is little to rule out; under
    # autocast nobody asks for the result of float32.
    return (
        n_latents >= max(FROM_LATENTS, 2 * candidates_for(x.shape[1]) * k)
        and x.shape[1] <= WIDEST
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and has_bfloat16()
    )


@torch.no_grad()
def screened(
    x: Float[Tensor, "rows width"],
    weight: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    k: int,
    scratch: Scratch,
) -> Support | None:
    """Return where x Eᵀ + b_e has its k largest values in each row, and those values.

    Args:
        x: rows.
        weight: encoder.
        bias: of the encoder.
        k: latents of a row; at most half of all.
        scratch: memory for the rough product, and for the support's gradients.

    Returns:
        The support; None if the bound leaves too many rows unsure for this to be worth the time.
    """
    kind = torch.bfloat16
    rough = scratch.take(len(x), len(weight), x, kind)
    torch.addmm(bias.to(kind), x.to(kind), weight.to(kind).T, out=rough)
    roughly, candidates = largest(rough, min(candidates_for(x.shape[1]) * k, len(weight)))
    support = Support.of_indices(candidates, len(weight))
    # Several candidates for each place leave the error room: the k largest lie among them unless
    # more others than there are to spare come within the error of the k.
    exact = support.products(x, weight).add_(bias[candidates.flatten()]).view(candidates.shape)
    values, winners = largest(exact, k)
    latents = candidates.gather(1, winners)
    sure = _sure(x, weight, bias, values, roughly.float())
    unsure = (~sure).nonzero().flatten()
    # Rows whose largest values lie close together, as early in training, may all be unsure.
    if len(unsure) > MOST_UNSURE * len(x):
        return None
    if len(unsure):
        whole = torch.addmm(bias, x[unsure], weight.T)
        values[unsure], latents[unsure] = largest(whole, k)
    return Support.of_indices(latents, len(weight), values, scratch)


def _sure(
    x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, roughly: Tensor
) -> Bool[Tensor, " rows"]:
    """Say of which rows no latent that is no candidate can be among the k largest."""
    # No other latent's rough value is above the smallest candidate's, so that its true value is at
    # most that and the error. If the k-th largest exact value reaches there, the choice is certain.
    least = roughly.amin(1)
    # NaN compares as false: a row that has one is computed in full.
    sure: Tensor = values.amin(1) >= least + largest_error(x, weight, bias, least)
    return sure


def largest_error(
    x: Float[Tensor, "rows width"],
    weight: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    least: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Return how far off, at most, a rough value may be that is no larger than `least`.

    With rough factors x̃ and ẽ, x̃·ẽ − x·e = (x̃ − x)·e + x̃·(ẽ − e), each at most a product of norms.
    """
    # How much the rows lose to rounding is measured: it is a third of what it may be at worst, and
    # fewer rows stay unsure. Measured for the weights, too, it would cost more than it saves.
    lost = torch.linalg.vector_norm(x - x.to(torch.bfloat16), dim=1)
    norms = lost + PRODUCT_ERROR * torch.linalg.vector_norm(x, dim=1)
    # One bound for all latents, by the largest norm: a bound for each would be a matrix as large as
    # the product, and cost what screening saves.
    steepest = torch.linalg.vector_norm(weight, dim=1).amax()
    # What rounds r = x·e + b is in proportion to |r|, which is large for latents far below zero,
    # too. But r + 2⁻⁷ |r| grows with r: of all rough values up to `least`, none may in truth lie
    # higher than that at `least`.
    error: Tensor = norms * steepest + ROUNDING * (least.abs() + bias.abs().amax())
    return error
