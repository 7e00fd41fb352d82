"""The demo's pictures: Grad-FAM overlays and optimized images, in rows of tiles."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.hooks import HookedModel
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.maximization import maximize
from salve_plugin.validate.pictures import overlay, png_bytes, to_picture

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 128
GAP = 4


def sheet(rows: Sequence[Sequence["Image"]]) -> bytes:
    """Return one PNG with the pictures in rows, each resized to `TILE` x `TILE`."""
    from PIL import Image

    width = max(len(row) for row in rows) * (TILE + GAP) - GAP
    canvas = Image.new("RGB", (width, len(rows) * (TILE + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)
            canvas.paste(tile, (x * (TILE + GAP), y * (TILE + GAP)))
    return png_bytes(canvas)


def explained(
    hooked: HookedModel, dictionary: Dictionary, images: Tensor, latents: Sequence[int]
) -> list["Image"]:
    """Return each image with the Grad-FAM map of its own latent over it.

    Args:
        hooked: the attached model.
        dictionary: of one of its sites.
        images: (images, channels, height, width), as the model takes them.
        latents: one for each image.
    """
    maps = LayerGradFam.of(hooked, dictionary).attribute(images, target=list(latents))
    # One colour scale for the whole sheet, whether a map has negative values or not.
    return [overlay(image, heat, signed=True) for image, heat in zip(images, maps, strict=True)]


def maximized(
    hooked: HookedModel,
    dictionary: Dictionary,
    latent: int,
    *,
    sign: float,
    size: tuple[int, int, int],
    low: float,
    high: float,
) -> "Image":
    """Return the image that drives a latent the most, upwards or (negative sign) downwards.

    Args:
        hooked: the attached model.
        dictionary: of one of its sites.
        latent: which latent.
        sign: of the pole to show.
        size: (channels, height, width).
        low: the model input that is black.
        high: the model input that is white.
    """
    pole: Literal[1, -1] = 1 if sign >= 0 else -1
    maximization = maximize(hooked, dictionary, latent, sign=pole, size=size, low=low, high=high)
    return to_picture(maximization.image)
