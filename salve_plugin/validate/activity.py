"""What each latent does on a recording: how often, how strongly, and on which images most."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import L0_TOLERANCE
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.rows import Spread
from salve_plugin.modes import without_autocast

BINS = 32
"""Bars of a histogram of one latent's codes."""
_BATCH = 1024
_CODES = 2**22
"""Codes of a batch: with many latents, fewer rows."""


@dataclass(frozen=True, eq=False)
class Activity:
    """All latents on all images; of several rows of an image the strongest code counts.

    "Active" is a code above 0.01 times the root of the rows' mean squared distance from their mean,
    as in `salve_plugin.validate.measures`.

    Attributes:
        least: smallest code, (latents,).
        most: largest code, (latents,).
        density: share of the rows in which each latent is active, (latents,).
        signs: -1 where the largest code in absolute value is negative, else 1, (latents,).
        top_images: images with the largest sign x code, best first, (latents, top).
        top_codes: of these, with their signs, (latents, top).
        counts: how many images have a code in each of `BINS` equal intervals from least to most,
            (latents, BINS).
    """

    least: Float[Tensor, " latents"]
    most: Float[Tensor, " latents"]
    density: Float64[Tensor, " latents"]
    signs: Float[Tensor, " latents"]
    top_images: Int64[Tensor, "latents top"]
    top_codes: Float[Tensor, "latents top"]
    counts: Int64[Tensor, "latents bins"]


@torch.no_grad()
@without_autocast()
def activity(dictionary: Dictionary, acts: Activations, top: int) -> Activity:
    """Read a recording twice: for the extremes, then for the images and counts between them.

    Memory does not grow with the images.

    Args:
        dictionary: of the recording's site.
        acts: one row an image, or several.
        top: how many images to name for each latent.
    """
    n_latents, device = dictionary.n_latents, dictionary.atoms.device
    # Of one type throughout, whatever torch's default is: in bfloat16 counts would stop at 256.
    least = torch.full((n_latents,), torch.inf, dtype=torch.float32)
    most = -least
    active = torch.zeros(n_latents, dtype=torch.float64)
    tolerance = activity_tolerance(acts)
    for batch in acts.batches(_rows(dictionary)):
        codes = dictionary.encode(batch.x.to(device)).float().cpu()
        least, most = torch.minimum(least, codes.amin(0)), torch.maximum(most, codes.amax(0))
        active += (codes.abs() > tolerance).sum(0)
    signs = torch.ones_like(most).masked_fill(-least > most, -1.0)
    top = min(top, acts.n_images)
    best = torch.full((top, n_latents), -torch.inf, dtype=torch.float32)
    images = torch.zeros(top, n_latents, dtype=torch.int64)
    counts = torch.zeros(n_latents, BINS, dtype=torch.int64)
    # A constant latent has intervals of length 0: all its codes fall into the first.
    step = ((most - least) / BINS).clamp(min=torch.finfo(torch.float32).tiny)
    for numbers, codes in codes_by_image(dictionary, acts, signs):
        bins = ((codes - least) / step).long().clamp(0, BINS - 1)
        counts.scatter_add_(1, bins.T, torch.ones_like(bins.T))
        held = torch.cat([best, codes * signs])
        named = torch.cat([images, numbers[:, None].expand_as(codes)])
        # Stable: of equal codes, the image that was recorded first.
        order = held.sort(dim=0, descending=True, stable=True).indices[:top]
        best, images = held.gather(0, order), named.gather(0, order)
    return Activity(
        least, most, active / acts.n_rows, signs, images.T.contiguous(),
        (best * signs).T.contiguous(), counts,
    )  # fmt: skip


def _rows(dictionary: Dictionary) -> int:
    return max(1, min(_BATCH, _CODES // dictionary.n_latents))


def activity_tolerance(acts: Activations) -> float:
    """Return what a code must exceed to be active: 0.01 of the rows' root mean squared distance.

    That is of their distance from their mean.
    """
    spread = Spread(acts.width)
    for batch in acts.batches(_BATCH):
        spread.add(batch.x)
    return float(L0_TOLERANCE * (spread.total() / acts.n_rows) ** 0.5)


def codes_by_image(
    dictionary: Dictionary, acts: Activations, signs: Tensor
) -> Iterator[tuple[Int64[Tensor, " images"], Float[Tensor, "images latents"]]]:
    """Yield images and, of each one's codes, the largest of sign x code, with its sign."""
    device = dictionary.atoms.device
    held: tuple[Tensor, Tensor] | None = None
    for batch in acts.batches(_rows(dictionary)):
        codes = dictionary.encode(batch.x.to(device)).float().cpu() * signs
        numbers, place = torch.unique_consecutive(batch.images.long(), return_inverse=True)
        strongest = torch.full_like(codes[: len(numbers)], -torch.inf)
        strongest.scatter_reduce_(0, place[:, None].expand_as(codes), codes, "amax")
        if held is not None:  # an image's rows may be cut by the end of a batch
            same = held[0][-1] == numbers[0]
            if same:
                strongest[0] = torch.maximum(strongest[0], held[1][-1])
            kept = slice(0, len(held[0]) - int(same))
            # The sign once more: what was compared as sign x code is the code again.
            yield held[0][kept], held[1][kept] * signs
        held = numbers, strongest
    if held is not None:
        yield held[0], held[1] * signs
