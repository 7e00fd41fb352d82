"""How often each latent is among the fewest that a decision hangs on, and how often by chance."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from salve_plugin.faces.one_line import one_line
from salve_plugin.validate.evidence.flipping import flip_of
from salve_plugin.validate.evidence.head import ReadHead
from salve_plugin.validate.evidence.permuting import LEVEL

MOST_TERMS = 2**30
"""Contributions of all images, latents and classes that are put in order in all."""


@dataclass(frozen=True, eq=False)
class FlipShares:
    """In what share of images a latent is among the fewest whose removal flips the decision.

    Attributes:
        share: of the images, (latents,).
        share_null: what that stays at or below in 95 % of cases, if each image's set were as many
            of its active latents, drawn at random.
        share_p: chance of as many images in that case.
        n_images: that were tried.
    """

    __repr__ = one_line

    share: Float64[Tensor, " latents"]
    share_null: Float64[Tensor, " latents"]
    share_p: Float64[Tensor, " latents"]
    n_images: int


def images_to_try(head: ReadHead, most: int) -> int:
    """Return on how many images decisions are flipped, at most so many."""
    return max(16, min(most, MOST_TERMS // head.pull.numel()))


def flip_shares(
    head: ReadHead, x: Float[Tensor, "images width"], codes: Float64[Tensor, "images latents"]
) -> dict[str, Tensor]:
    """Flip the decision for every image by the fewest latents; see `fewest_to_flip`.

    Args:
        head: the classifier and the atoms.
        x: what it reads.
        codes: of these rows.

    Returns:
        The tensors of `FlipShares` by name.
    """
    among = torch.zeros(codes.shape, dtype=torch.bool)
    active = codes != 0
    for row, logits in enumerate(head.logits(x)):
        # What is off contributes nothing, and to order it for every rival is most of the work.
        own = active[row].nonzero()[:, 0]
        if len(own):
            # Without random orders, since what chance gives is known in closed form.
            flip = flip_of(logits, codes[row, own], head.pull[own], None)
            among[row, own[list(flip.latents)]] = True
    chance = among.sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp(min=1).double()
    return _beside_chance(among, active * chance)


def _beside_chance(
    among: Bool[Tensor, "images latents"], chance: Float64[Tensor, "images latents"]
) -> dict[str, Tensor]:
    """Compare counts with those of independent draws, exactly (Poisson binomial)."""
    n_images = len(among)
    # Column n: that n of the images so far have the latent in their set.
    law = torch.zeros(among.shape[1], n_images + 1, dtype=torch.float64)
    law[:, 0] = 1
    # Each image has another p, so that no binomial law holds: one image at a time, the count is one
    # more with p and stays with 1 - p.
    for p in chance:
        shifted = torch.cat([law.new_zeros(len(law), 1), law[:, :-1]], 1)
        law = law * (1 - p[:, None]) + shifted * p[:, None]
    counts = among.sum(0)
    at_least = law.flip(1).cumsum(1).flip(1).gather(1, counts[:, None])[:, 0].clamp(max=1.0)
    # Rounding of so many sums is not to lift a quantile by one.
    null = (law.cumsum(1) < LEVEL - 1e-12).sum(1)
    return {
        "share": counts.double() / n_images, "share_null": null.double() / n_images,
        "share_p": at_least,
    }  # fmt: skip
