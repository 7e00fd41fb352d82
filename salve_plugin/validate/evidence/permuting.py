"""Labels dealt out anew: the one null that all class measures share, and p-values against it."""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

LEVEL = 0.95
"""Nulls are reported as this quantile: chance stays below it in 19 of 20 cases."""
SIGNIFICANT = 0.05
"""Largest p that counts as beyond chance where latents or images are counted."""
_ROUNDING = 1e-9
"""Statistics of equal rankings that differ by less were summed in another order."""


def permuted_labels(
    labels: Int64[Tensor, " images"], permutations: int, seed: int
) -> Int64[Tensor, "permutations images"]:
    """Return the labels in random orders, the same ones for the same seed.

    Every latent is compared with the same orders, so that the largest statistic of all latents in
    each order is what the best of so many gets by chance (Westfall & Young 1993, maxT).
    """
    random = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(labels), generator=random) for _ in range(permutations)]
    return torch.stack([labels[order] for order in orders])


def p_values(
    statistic: Float64[Tensor, " latents"], null: Float64[Tensor, "permutations columns"]
) -> Float64[Tensor, " latents"]:
    """Return (1 + #{null >= statistic}) / (1 + permutations): never 0, and valid for any null.

    The identity is one of the orders, hence the ones (Phipson & Smyth 2010).

    Args:
        statistic: of each latent; larger speaks against chance.
        null: of each latent (permutations, latents), or one for all (permutations, 1).
    """
    # Relative, and absolute near 0. A latent without a statistic has -inf, which every null
    # reaches: its p is 1.
    as_large = null >= statistic - _ROUNDING * statistic.abs().clamp(min=1)
    return (1 + as_large.sum(0)).double() / (1 + len(null))


def upper(null: Float64[Tensor, "permutations columns"]) -> Float64[Tensor, " columns"]:
    """Return what chance stays at or below in 95 % of the permutations, the measured one counted.

    Whatever is above it has a p of at most 5 %, of 19 permutations or more; of 19 it is the
    largest.
    """
    # A value that was reached, and no mean of two, which chance may be above more often than it is
    # said to be.
    rank = math.ceil(LEVEL * (1 + len(null)) - _ROUNDING)
    return null.kthvalue(min(rank, len(null)), dim=0).values
