"""Heat maps and optimized images as pictures."""

import math
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.control.operators.base import real
from salve_plugin.errors import InputError
from salve_plugin.integers import whole
from salve_plugin.kinds import of_kind

if TYPE_CHECKING:
    from PIL.Image import Image

PALETTE = "cividis"
"""From dark blue over grey to yellow. Its luminance rises all the way, so that a print in grey and
colour-blind readers see the same order (Nuñez, Anderton and Renslow, 2018); its middle has no hue,
so that where a signed map is zero the image is as it is."""
OPACITY = 0.8
"""Of a map over its image: the image is still seen, and the colours are nearly the scale's."""


@dataclass(frozen=True)
class Scale:
    """What the two ends of the palette stand for: one scale for all maps that are shown together.

    Attributes:
        limit: the largest absolute value, at the palette's bright end.
        signed: whether the dark end is -limit, and zero the middle; else the dark end is zero.
    """

    limit: float
    signed: bool

    @classmethod
    def of(cls, *maps: Tensor, signed: bool | None = None) -> "Scale":
        """Return the scale that shows every value; signed by default if any value is negative."""
        limit = max(float(heat.abs().max()) for heat in maps)
        return cls(limit, any((heat < 0).any() for heat in maps) if signed is None else signed)

    @property
    def least(self) -> float:
        """The value of the palette's dark end."""
        return -self.limit if self.signed else 0.0


def overlay(
    image: Float[Tensor, "channels height width"],
    heat: Float[Tensor, "*one h w"],
    *,
    alpha: float = OPACITY,
    size: int | tuple[int, int] | None = None,
    signed: bool | None = None,
    limit: float | None = None,
) -> "Image":
    """Return the image in grey with the heat map over it in colour.

    The palette is cividis, its luminance rising from dark blue over grey to yellow. A signed map is
    blue below zero, grey at zero and yellow above; a positive one goes from blue to yellow. Both
    are scaled to the largest absolute value, so that zero is always one colour and a map of zeros
    is a plain one.

    Args:
        image: in any range; it is stretched to its own extremes.
        heat: (h, w) or (1, h, w), as `LayerGradFam.attribute(...)[i]`.
        alpha: opacity of the heat map, 0 to 1.
        size: of the picture, side or (height, width); by default the image's.
        signed: which of the two scales; by default signed if any value is negative. Set it for
            pictures that are shown side by side; False shows what is negative as zero.
        limit: the value of the brightest colour, for pictures that are shown side by side; by
            default the map's largest absolute value. What is beyond has the colour of the end.

    Raises:
        InputError: if a value is not finite, alpha is not in [0, 1], the limit is negative, or a
            shape is wrong.
    """
    alpha = real(alpha, "alpha")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha} must be between 0 and 1")
    if limit is not None and not 0 <= real(limit, "limit") < math.inf:
        raise InputError(f"limit={limit} must be a positive number: the largest value to be shown")
    plain = _checked(image, "image")
    picture_size = _picture_size(plain, size)
    # Colours are the map's: in those of the image, they would not be told apart.
    grey = _resized(_stretched(plain).mean(0, keepdim=True), picture_size)
    of_kind(heat, Tensor, "heat", "a tensor (h, w) or (1, h, w)")
    if heat.ndim not in (2, 3) or heat.numel() != heat.shape[-2] * heat.shape[-1]:
        raise InputError(f"heat map of shape {tuple(heat.shape)} must be (h, w) or (1, h, w)")
    checked = _checked(heat.reshape(-1, *heat.shape[-2:]), "heat map")[:1]
    levels = _resized(checked, picture_size)[0]
    # Of what is shown: enlarged, a map may lose its peaks, and the brightest colour would stay
    # unused.
    scale = Scale.of(levels, signed=signed)
    scale = scale if limit is None else replace(scale, limit=limit)
    return to_picture((1 - alpha) * grey.expand(3, -1, -1) + alpha * coloured(levels, scale))


def coloured(heat: Float[Tensor, "h w"], scale: Scale | None = None) -> Float[Tensor, "3 h w"]:
    """Return the colours of a heat map, red, green, blue in [0, 1]; see `overlay`."""
    import matplotlib

    scale = scale or Scale.of(heat)
    # A limit of zero is that of a map of zeros: all of it has the colour of zero.
    unit = (heat / (scale.limit or 1)).clamp(-1, 1)
    levels = (unit + 1) / 2 if scale.signed else unit.clamp(min=0)
    colours = matplotlib.colormaps[PALETTE](levels.numpy())
    return torch.from_numpy(colours)[..., :3].permute(2, 0, 1).float()


def stretched(image: Float[Tensor, "channels height width"]) -> "Image":
    """Return a model input in any range as a picture from its darkest to its brightest value.

    Raises:
        InputError: as for `to_picture`.
    """
    return to_picture(_stretched(_checked(image, "image")))


def to_picture(image: Float[Tensor, "channels height width"]) -> "Image":
    """Return an image with values in [0, 1]; values beyond are clipped.

    Of other than one or three channels no colours can be made: their mean is shown, in grey.

    Raises:
        InputError: if a value is not finite.
    """
    from PIL import Image

    image = _checked(image, "image")
    if image.shape[0] != 3:
        image = image.mean(0, keepdim=True)
    levels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(levels[..., 0] if image.shape[0] == 1 else levels)


def png_bytes(picture: "Image", *, colours: int | None = None) -> bytes:
    """Return the picture as a PNG file's content, the same bytes every time.

    Args:
        picture: any; what it says about itself, such as the program that drew it, is left out.
        colours: size of a palette to reduce it to, up to 256: a third of the bytes.
    """
    stream = BytesIO()
    # Without k-means a plain area takes most of the palette, and a colour bar becomes steps.
    shown = picture if colours is None else picture.convert("RGB").quantize(colours, kmeans=2)
    shown.save(stream, format="PNG")
    return stream.getvalue()


def _checked(values: Tensor, name: str) -> Tensor:
    """Return the values as float32 on the CPU if they are an image of finite numbers."""
    of_kind(values, Tensor, name, "a tensor (channels, height, width)")
    if values.ndim != 3 or values.numel() == 0:
        raise InputError(f"{name} of shape {tuple(values.shape)} must be (channels, height, width)")
    if not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise InputError(
            f"{name} has {bad} NaN or infinite of {values.numel()} values; find what made "
            "them, there is no colour for such values"
        )
    return values.detach().float().cpu()


def _stretched(image: Tensor) -> Tensor:
    """Return the image from 0 to 1; a constant image in middle grey."""
    # By its own extremes: nobody here knows with which mean and spread it was normalized.
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else torch.full_like(image, 0.5)


def _picture_size(image: Tensor, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return the picture's height and width."""
    if size is None:
        return image.shape[-2], image.shape[-1]
    sides = size if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2:
        raise InputError(f"size is {size!r:.80}; expected one side, or (height, width)")
    height, width = (whole(side, "size", least=1) for side in sides)
    return height, width


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[1:] == size:
        return image
    return functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
