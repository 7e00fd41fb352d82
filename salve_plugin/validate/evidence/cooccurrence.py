"""Which other latent is on in the same images, and how much of that chance explains."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import hypergeom
from torch import Tensor

from salve_plugin.validate.evidence.permuting import LEVEL

NO_PARTNER = -1
_ROWS = 64
"""Latents at once, each with all others: a few numbers for each pair are in memory."""


@dataclass(frozen=True, eq=False)
class Partners:
    """The most associated other latent of each.

    Attributes:
        partner: which; -1 where the latent, or every other, is on in all images or in none.
        phi: correlation of being on, over images; NaN without a partner.
        phi_null: the largest that 95 % of permutations have, for the best of all others.
        phi_p: chance of as much overlap in a permutation, times the number of others; at most 1.
    """

    partner: Int64[Tensor, " latents"]
    phi: Float64[Tensor, " latents"]
    phi_null: Float64[Tensor, " latents"]
    phi_p: Float64[Tensor, " latents"]


def partners(
    joint: Float[Tensor, "some latents"],
    counts: Float64[Tensor, " latents"],
    own: Int64[Tensor, " some"],
    n_images: int,
) -> Partners:
    """Return the partner of some latents by the phi coefficient.

    Nothing has to be drawn: over all orders of the images, the overlap of two latents is
    hypergeometric (Fisher's exact test). For the choice of the best partner it is corrected by
    Bonferroni.

    Args:
        joint: images in which both are on.
        counts: images in which each is on.
        own: which latents the rows are.
        n_images: in all.
    """
    parts = [
        _partners(rows.double(), counts, some, n_images)
        for rows, some in zip(torch.split(joint, _ROWS), torch.split(own, _ROWS), strict=True)
    ]
    return Partners(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _partners(
    joint: Tensor, counts: Tensor, own: Tensor, n_images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # With n images, n_i and n_j of them on, n_ij both: phi = (n n_ij - n_i n_j) over the root of
    # n_i (n - n_i) n_j (n - n_j), Pearson's correlation of two indicators.
    varied = counts * (n_images - counts)
    spread = (varied[own, None] * varied).sqrt()
    phi = (n_images * joint - counts[own, None] * counts) / spread
    phi = phi.masked_fill(spread == 0, -torch.inf)
    rows = torch.arange(len(own))
    phi[rows, own] = -torch.inf  # a latent is no partner of itself
    best = phi.argmax(1)
    largest = phi[rows, best]
    has_partner = largest.isfinite()
    # What is on everywhere or nowhere is no choice, and is not corrected for.
    others = ((varied > 0).sum() - (varied[own] > 0).long()).clamp(min=1).numpy()
    first, second = counts[own].numpy(), counts[best].numpy()
    overlap = joint[rows, best].numpy()
    # sf(k) is P(X > k): from one less, an overlap that is as large counts.
    p = torch.from_numpy(hypergeom.sf(overlap - 1, n_images, first, second) * others).clamp(max=1)
    # By Bonferroni, too: what the largest of so many overlaps stays at or below.
    by_chance = hypergeom.isf((1 - LEVEL) / others, n_images, first, second)
    expected = counts[own] * counts[best]
    null = (n_images * torch.from_numpy(by_chance) - expected) / spread[rows, best]
    return (
        torch.where(has_partner, best, NO_PARTNER),
        torch.where(has_partner, largest, torch.nan),
        torch.where(has_partner, null, torch.nan),
        torch.where(has_partner, p.double(), 1.0),
    )
