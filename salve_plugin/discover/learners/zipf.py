"""The Zipf law of latents: how many rows the latent of each rank has, or should have."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BISECTIONS = 100
"""Halvings of the interval in which the factor of the shares lies: down to rounding."""


def places(
    n_latents: int, total: int, rows: int, exponent: float, shift: float
) -> Int[Tensor, " latents"]:
    """Return how many rows the latent of each rank gets: whole numbers that add up to `total`.

    They are in proportion to (rank + shift)^-exponent, except that none is above `rows` nor, if
    `total` is enough for it, below 1. Largest remainders are rounded up.

    >>> places(4, 12, 8, 1.0, 0.0).tolist()
    [6, 3, 2, 1]
    >>> places(4, 12, 4, 1.0, 0.0).tolist()
    [4, 4, 2, 2]
    >>> places(4, 6, 8, 0.0, 0.0).tolist()
    [2, 2, 1, 1]

    Args:
        n_latents: number of latents.
        total: number of places, at most n_latents · rows.
        rows: of the batch.
        exponent: of the Zipf law.
        shift: added to ranks, which count from 1.
    """
    return torch.tensor(_places(n_latents, total, rows, exponent, shift))


# The same in every step but that of an epoch's last batch, which is smaller.
@lru_cache(maxsize=8)
def _places(n: int, total: int, rows: int, exponent: float, shift: float) -> list[int]:
    law = zipf_law(n, exponent, shift)
    least = 1 if total >= n else 0
    low, high = 0.0, total / float(law.min())
    # Clamped shares add up to more the larger the factor is, and in no closed form: which of them
    # are clamped depends on it.
    for _ in range(BISECTIONS):
        factor = (low + high) / 2
        if (factor * law).clamp(least, rows).sum() < total:
            low = factor
        else:
            high = factor
    exact = (high * law).clamp(least, rows)
    # Rounding would leave 2.9999999 where 3 is meant, and its place to another.
    whole = (exact + 1e-9).floor()
    order = (exact - whole).argsort(descending=True, stable=True)
    whole[order[: total - int(whole.sum())]] += 1
    return [int(number) for number in whole]


def zipf_law(n: int, exponent: float, shift: float) -> Float[Tensor, " n"]:
    """Return (rank + shift)^-exponent for ranks 1 to n, made to add up to 1, in float64."""
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    weights = (ranks + shift) ** -exponent
    return weights / weights.sum()


def under_used(
    density: Float[Tensor, " latents"], k: int, exponent: float, shift: float
) -> Bool[Tensor, " latents"]:
    """Say which latents are active more rarely than a Zipf law says for their rank.

    The expected density of rank r is k (r + shift)^-exponent / Σ_q (q + shift)^-exponent, at most
    1: densities add up to k, the active latents of a row (after Ayonrinde 2024, aux_zipf_loss).

    >>> under_used(torch.tensor([0.1, 0.8, 0.7]), 1, 1.0, 0.0)  # expected: 0.545, 0.273, 0.182
    tensor([ True, False, False])

    Args:
        density: share of the rows in which each latent is active; all zero if not yet known, and
            then no latent is under-used.
        k: active latents of a row.
        exponent: of the Zipf law.
        shift: added to ranks, which count from 1.
    """
    expected = torch.empty_like(density)
    law = k * zipf_law(len(density), exponent, shift)
    expected[ranking(density)] = law.clamp(max=1).to(expected)
    return (density < expected) & density.any()


def ranking(density: Float[Tensor, " latents"]) -> Int[Tensor, " latents"]:
    """Return the latents, the densest first."""
    return density.argsort(descending=True, stable=True)
