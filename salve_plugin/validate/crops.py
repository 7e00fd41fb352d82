"""The part of an image that a map points at: the crop that galleries of latents show."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import InputError

LEVEL = 0.5
"""Share of its largest value from which a map's cells belong to the part."""


@dataclass(frozen=True)
class Box:
    """A part of an image, in its pixels: rows from `top` up to `bottom`, columns likewise.

    Attributes:
        top: first row.
        left: first column.
        bottom: the row after the last.
        right: the column after the last.
    """

    top: int
    left: int
    bottom: int
    right: int

    def of(
        self, image: Float[Tensor, "channels height width"]
    ) -> Float[Tensor, "channels part_height part_width"]:
        """Return what the image shows there."""
        return image[..., self.top : self.bottom, self.left : self.right]


def pointed_at(
    heat: Float[Tensor, "h w"], size: tuple[int, int], *, level: float = LEVEL
) -> Box | None:
    """Return the smallest box around the peak of a map and the strong cells that touch it.

    Cells of at least `level` times the largest value count where a chain of such neighbours,
    corners included, leads to the peak: a second object elsewhere does not stretch the box over
    all that lies between.

    Args:
        heat: the map; what is negative points at nothing.
        size: height and width of the image in pixels, over which the map's cells spread evenly.
        level: in (0, 1].

    Returns:
        The box; None where no value is above zero.

    Raises:
        InputError: if the map is empty or not of two axes, a value is not finite, or the level or
            size is out of range.
    """
    from scipy.ndimage import label

    # In double, so that no share of a peak rounds to zero.
    heat = heat.detach().cpu().double()
    if heat.ndim != 2 or not heat.numel() or not bool(heat.isfinite().all()):
        raise InputError(
            f"heat map of shape {tuple(heat.shape)} is no grid (h, w), is empty or holds NaN or "
            "infinite values; compute it again, and pass the map of one image"
        )
    if not 0 < level <= 1 or min(size) < 1:
        raise InputError(f"level {level}, size {size}: expected a level in (0, 1], pixels from 1")
    peak = float(heat.max())
    if peak <= 0:
        return None
    parts, _ = label((heat >= level * peak).numpy(), structure=[[1, 1, 1]] * 3)
    own = torch.from_numpy(parts)
    rows, columns = (own == own.flatten()[heat.argmax()]).nonzero().T
    # Outward to whole pixels, so that a cell narrower than one still has it. In integers: the last
    # cell's quotient can round to beyond the image.
    height, width = size
    return Box(
        int(rows.min()) * height // heat.shape[0],
        int(columns.min()) * width // heat.shape[1],
        -(-(int(rows.max()) + 1) * height // heat.shape[0]),
        -(-(int(columns.max()) + 1) * width // heat.shape[1]),
    )
