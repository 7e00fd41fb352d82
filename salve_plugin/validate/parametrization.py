"""Images as functions of unbounded numbers, and the regularizers of feature visualization.

After Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017: optimizing Fourier
coefficients scaled by 1/f, in decorrelated colours, preconditions the ascent so that it does not
end in high-frequency noise; jitter and total variation suppress what only one pixel grid shows.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Parametrization = Literal["fourier", "pixel"]

COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of the covariance of ImageNet's RGB values, as published with lucid (Olah et al.)."""

CONTRAST = 0.3
"""Standard deviation of a start before the squashing: a faint grey image."""


def start(
    parametrization: Parametrization,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    contrast: float = CONTRAST,
) -> Tensor:
    """Return random parameters of an image of `shape` (channels, height, width).

    Args:
        parametrization: "fourier" for complex coefficients as two real numbers (channels, height,
            width // 2 + 1, 2); "pixel" for one number per pixel.
        shape: of the image.
        generator: the source of chance.
        contrast: standard deviation of the image before it is squashed.
    """
    channels, height, width = shape
    full = shape if parametrization == "pixel" else (channels, height, width // 2 + 1, 2)
    # Of one type, whatever torch's default is: a seed stands for the same image everywhere.
    return torch.randn(full, generator=generator, dtype=torch.float32) * contrast


def image_of(
    parametrization: Parametrization, shape: tuple[int, int, int]
) -> Callable[[Tensor], Float[Tensor, "channels h w"]]:
    """Return the function from parameters to an image in (0, 1)."""
    if parametrization == "pixel":
        return torch.sigmoid
    scale = inverse_frequency(shape[1], shape[2])
    colours = torch.tensor(COLOURS, dtype=torch.float32)
    # Only the proportions are wanted; the strength of colours belongs to `CONTRAST`.
    colours = colours / colours.norm(dim=1).mean()

    def image(spectrum: Tensor) -> Tensor:
        coefficients = torch.view_as_complex(spectrum * scale[..., None])
        # Orthonormal, so that the contrast of a start does not depend on the image's size.
        waves: Tensor = torch.fft.irfft2(coefficients, s=shape[1:], norm="ortho")
        if shape[0] == 3:
            waves = torch.einsum("rc,chw->rhw", colours, waves)
        return torch.sigmoid(waves)

    return image


def inverse_frequency(height: int, width: int) -> Float[Tensor, "height half"]:
    """Return 1 / f for each coefficient of a real 2-d transform, with a root mean square of 1/√2.

    So coefficients whose two parts are standard normal make an image of about unit variance, its
    amplitude falling as 1 / f as in natural images. The constant term has the lowest frequency's.

    >>> inverse_frequency(8, 8)[0, 1] / inverse_frequency(8, 8)[0, 4]
    tensor(4.)
    """
    rows = torch.fft.fftfreq(height, dtype=torch.float32)
    columns = torch.fft.rfftfreq(width, dtype=torch.float32)
    frequency = (rows[:, None] ** 2 + columns**2).sqrt()
    # The constant term has frequency 0 and would be infinite.
    scale: Tensor = 1 / frequency.clamp(min=1 / max(height, width))
    return scale / scale.square().mean().sqrt() / 2**0.5


def total_variation(image: Float[Tensor, "channels h w"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference of neighbours, down plus across (anisotropic).

    >>> total_variation(torch.tensor([[[0.0, 1.0], [0.0, 3.0]]])).item()
    3.0
    """
    down = (image[:, 1:] - image[:, :-1]).abs()
    across = (image[:, :, 1:] - image[:, :, :-1]).abs()
    # Of an image that is one pixel high, there is no mean of what is below one another.
    return sum((part.mean() for part in (down, across) if part.numel()), image.new_zeros(()))


def shifted(
    image: Float[Tensor, "channels h w"], most: int, generator: torch.Generator
) -> Float[Tensor, "channels h w"]:
    """Return the image rolled by a random offset of at most `most` pixels in each direction.

    Cyclic: what leaves on one side comes in on the other. `generator` is the source of chance.
    """
    dy, dx = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return image.roll((dy, dx), (1, 2))
