"""Which named segment of the images each latent's map covers best (Bau et al. 2017)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.nn import functional

from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.validate.evidence.permuting import p_values, upper

SHARE = 0.005
"""Of all positions of all images, those with a latent's largest codes make its region."""
GRID = 56
"""Side of the grid that maps and masks are compared on."""
SHUFFLES = 19
"""Times that masks are dealt out anew: the true pairing is one of 20."""
MOST_SEGMENTS = 10_000
_LATENTS = 1024
"""Maps that are enlarged at once."""
_ROUNDING = 1e-6
NO_SEGMENT = -1

ImageMaps = Callable[[], Iterable[Float[Tensor, "latents h w"]]]
"""Yields the maps of all latents, image by image; called twice."""


@dataclass(frozen=True, eq=False)
class SegmentProfile:
    """The segment that each latent's region overlaps most, over all images.

    Attributes:
        names: by number in the masks; None if they have none.
        segment: which; -1 for a latent without a region.
        iou: intersection over union of region and segment, both over all images.
        iou_null: what the best of all segments reaches with masks of other images that have it.
        iou_p: share of the pairings, the true one counted, in which the best is as good.
    """

    __repr__ = one_line

    names: tuple[str, ...] | None
    segment: Int64[Tensor, " latents"]
    iou: Float64[Tensor, " latents"]
    iou_null: Float64[Tensor, " latents"]
    iou_p: Float64[Tensor, " latents"]

    def name(self, latent: int) -> str | None:
        """Return the name of a latent's segment, or its number."""
        segment = int(self.segment[latent])
        if segment == NO_SEGMENT:
            return None
        return str(segment) if self.names is None else self.names[segment - 1]


def masks_on_grid(masks: Sequence[Any], n_images: int) -> Int[Tensor, "images grid grid"]:
    """Return masks by their nearest pixels.

    Args:
        masks: item i is (height, width), the number of the segment that each pixel of image i
            belongs to, 0 for none; as the model sees the image, cropped like it.
        n_images: how many there should be.

    Raises:
        InputError: if there is not one for each image, or it is no map of whole numbers.
    """
    if len(masks) != n_images:
        raise InputError(f"{len(masks)} masks for {n_images} recorded images; pass one for each")
    grid = torch.empty(n_images, GRID, GRID, dtype=torch.int16)
    for image in range(n_images):
        mask = _numbers(masks[image], image)
        # The pixels at the centres of the grid's cells.
        down, right = ((2 * torch.arange(GRID) + 1) * side // (2 * GRID) for side in mask.shape)
        grid[image] = mask[down][:, right].to(torch.int16)
    return grid


def _numbers(mask: Any, image: int) -> Int64[Tensor, "height width"]:
    try:
        numbers = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the mask of image {image} is a {type(mask).__name__}; expected a tensor or an array "
            "(height, width); make an array of a picture first"
        ) from error
    whole = numbers.ndim == 2 and numbers.numel() > 0
    whole = whole and not (numbers.is_floating_point() or numbers.is_complex())
    # In int64 before any comparison: torch has none for the 16 bits that masks are often stored in.
    wide = numbers.long() if whole else numbers
    if not whole or int(wide.min()) < 0 or int(wide.max()) > MOST_SEGMENTS:
        raise InputError(
            f"the mask of image {image} is {numbers.dtype} {tuple(numbers.shape)}; expected "
            f"(height, width) of whole numbers from 0 (no segment) to {MOST_SEGMENTS}"
        )
    return wide


def check_segments(masks: Int[Tensor, "images grid grid"], names: Sequence[str] | None) -> int:
    """Return how many numbers masks have, 0 included.

    Raises:
        InputError: if there is no segment, or one has no name.
    """
    largest = int(masks.max())
    if largest < 1 or (names is not None and len(names) < largest):
        raise InputError(
            f"the masks have segments up to number {largest}, of which {names} are the "
            "names: expected at least one, and a name for each from number 1 on"
        )
    return 1 + largest


def dissect(
    maps: ImageMaps,
    masks: Int[Tensor, "images grid grid"],
    names: Sequence[str] | None,
    seed: int,
) -> SegmentProfile:
    r"""Compare the region where each latent is strongest with every segment.

    As in network dissection, a latent's region is where its map, enlarged, reaches the largest
    0.5 % of all its values; a code that is off is in no region. For the null a
    segment's masks are dealt out anew among the images that have it: what is left by chance is
    that the latent is on in such images, and that things tend to lie where such things lie.

    Args:
        maps: of the images, in the order of the masks; larger is stronger.
        masks: from `masks_on_grid`.
        names: by number in the masks, from 1.
        seed: of the pairings.

    Raises:
        InputError: if there is no segment, or one has no name.
    """
    n_segments = check_segments(masks, names)
    levels = _levels(maps, len(masks))
    flat = masks.flatten(1).long()
    has = torch.stack([torch.bincount(own, minlength=n_segments) > 0 for own in flat])
    partners = _partners(has, seed)
    n_latents = len(levels)
    # Counts in half the memory of float64: float32 has every whole number up to 2**24, which the
    # region of a latent, 0.5 % of all positions, reaches at a million images.
    hits = torch.zeros(1 + SHUFFLES, n_latents * n_segments, dtype=torch.float32)
    region = torch.zeros(n_latents, dtype=torch.float32)
    for image, values in enumerate(maps()):
        for start in range(0, n_latents, _LATENTS):
            part = values[start : start + _LATENTS].float().cpu()
            shown = functional.interpolate(
                part[None], (GRID, GRID), mode="bilinear", align_corners=False
            )[0]
            latent, place = (shown.flatten(1) >= levels[start : start + _LATENTS, None]).nonzero(
                as_tuple=True
            )
            latent = latent + start
            region.index_add_(0, latent, torch.ones_like(latent, dtype=region.dtype))
            for segment in has[image].nonzero()[:, 0].tolist():
                own, orders = partners[segment]
                # The image's own mask first, then the one that each shuffle deals to it.
                others = torch.cat([torch.tensor([image]), orders[:, own == image][:, 0]])
                inside = (flat[others][:, place] == segment).float()
                hits.index_add_(1, latent * n_segments + segment, inside)
    # Number 0 is no segment. The union is region plus segment, less what both have; a segment dealt
    # out anew keeps its size, so that one union's sum serves all pairings.
    hits = hits.view(1 + SHUFFLES, n_latents, n_segments)[:, :, 1:].double()
    whole = region.double()[:, None] + torch.bincount(flat.flatten(), minlength=n_segments)[1:]
    best, segment = (hits / (whole - hits).clamp(min=1)).max(2)
    there = region > 0
    return SegmentProfile(
        None if names is None else tuple(names),
        torch.where(there, segment[0] + 1, NO_SEGMENT),
        torch.where(there, best[0], torch.nan),
        torch.where(there, upper(best[1:]), torch.nan),
        p_values(best[0], best[1:]),
    )


def _levels(maps: ImageMaps, n_images: int) -> Float[Tensor, " latents"]:
    """Return for each latent the least of the largest 0.5 % of its values, above zero."""
    largest: Tensor | None = None
    for values in maps():
        rows = values.flatten(1).float().cpu()
        count = math.ceil(SHARE * n_images * rows.shape[1])
        # Only the largest so far are kept, 0.5 % of all values, and never all maps.
        largest = rows if largest is None else torch.cat([largest, rows], 1)
        largest = largest.topk(min(count, largest.shape[1]), dim=1).values
    if largest is None:
        raise InputError("there are no images whose maps could be compared with masks")
    # Between equal neighbours a map that is enlarged may be an eps lower than both.
    return ((1 - _ROUNDING) * largest[:, -1]).clamp(min=torch.finfo(torch.float32).tiny)


def _partners(
    has: Bool[Tensor, "images segments"], seed: int
) -> list[tuple[Int64[Tensor, " own"], Int64[Tensor, "shuffles own"]]]:
    """Return for each segment the images that have it, and in random orders whose mask they get."""
    random = torch.Generator().manual_seed(seed)
    partners = []
    for column in has.T:
        own = column.nonzero()[:, 0]
        orders = [torch.randperm(len(own), generator=random) for _ in range(SHUFFLES)]
        partners.append((own, own[torch.stack(orders)]))
    return partners
