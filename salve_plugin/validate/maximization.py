"""Activation maximization: the image that drives a latent of a dictionary the most."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salve_plugin.control.networks import Networks
from salve_plugin.control.operators.base import real
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_dictionary
from salve_plugin.errors import AttributionError, InputError
from salve_plugin.hooks import check_attached, evaluating, reading
from salve_plugin.images import run
from salve_plugin.integers import seed_number, whole
from salve_plugin.network import OnBaseMismatch
from salve_plugin.validate.latents import image_latents, latent_index
from salve_plugin.validate.parametrization import (
    Parametrization,
    image_of,
    shifted,
    start,
    total_variation,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from salve_plugin.hooks import HookedModel

LEARNING_RATE = 0.05
NOISE_IMAGES = 16

Bound = float | Sequence[float]


@dataclass(frozen=True, repr=False)
class Maximization:
    """An image that drives a latent, and how it came about.

    Attributes:
        image: (channels, height, width) in [0, 1]; `model_input` is what the model saw.
        activation: the latent's pre-activation for the image.
        activations: (steps,) the same at each step, before the step, for the shifted image.
        noise: the same for random images of the starting distribution, to compare with.
        latent: which latent.
        sign: 1 if the latent was maximized, -1 if minimized.
        seed: of the start and the shifts.
        low: (channels, 1, 1), the model input that is 0 in `image`.
        high: (channels, 1, 1), the model input that is 1 in `image`.
        settings: the other arguments, as plain JSON values.
    """

    image: Float[Tensor, "channels h w"]
    activation: float
    activations: Float[Tensor, " steps"]
    noise: Float[Tensor, " images"]
    latent: int
    sign: int
    seed: int
    low: Tensor
    high: Tensor
    settings: Mapping[str, object]

    def __repr__(self) -> str:
        """Say in one line which latent was driven how far."""
        size = "x".join(map(str, self.image.shape))
        return (
            f"<Maximization of latent {self.latent} ({self.sign:+d}): {self.activation:.4g} for an "
            f"image {size}; random images {float(self.noise.mean()):.4g} ± "
            f"{float(self.noise.std()):.2g}>"
        )

    def figure(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw the image, and the latent at each step beside what random images reach.

        Args:
            path: also write it there, in the format of the suffix (PNG without one).

        Raises:
            InputError: if matplotlib does not know the format.
            WriteError: if the file cannot be written.
        """
        from salve_plugin.faces.maximization import maximization_figure

        return maximization_figure(self).written(path)

    @property
    def model_input(self) -> Float[Tensor, "channels h w"]:
        """The image as the model takes it."""
        return self.low + (self.high - self.low) * self.image


def maximize(
    hooked: "HookedModel",
    dictionary: Dictionary,
    latent: int,
    *,
    sign: Literal[1, -1] = 1,
    size: int | tuple[int, int] | tuple[int, int, int] | None = None,
    steps: int = 128,
    seed: int = 0,
    parametrization: Parametrization = "fourier",
    low: Bound | None = None,
    high: Bound | None = None,
    jitter: int | None = None,
    tv_weight: float = 10.0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Maximization:
    """Return an image that maximizes the pre-activation of a latent, found by gradient ascent.

    The ascent (Adam) is on the latent in units of its standard deviation over random images, minus
    the weighted total variation. A latent of a site with positions counts as its mean over them.
    The same arguments give the same image on the same machine; the global generator is not used.
    The model runs in evaluation mode and is left as it was.

    Args:
        hooked: the attached model.
        dictionary: its `site` must be one of the model's.
        latent: which latent.
        sign: -1 minimizes: the other pole of a signed latent.
        size: of the image: side, (height, width), or (channels, height, width); by default the
            model's `description["input_size"]`.
        steps: of ascent.
        seed: of the start and the shifts.
        parametrization: "fourier" (1/f coefficients, decorrelated colours if there are three
            channels) or "pixel".
        low: the model input that is black, one number or one per channel; by default
            -mean / std of `description["mean"]` and `["std"]`, else -2.
        high: the model input that is white; by default (1 - mean) / std, else 2.
        jitter: largest shift per step in pixels, cyclic; by default a sixteenth of the image.
        tv_weight: standard deviations of the latent that one unit of `total_variation` costs.
        on_base_mismatch: "warn" takes a dictionary of another network too, such as that which the
            model was fine-tuned from.

    Raises:
        BaseMismatchError: if the dictionary was learned from another network than the model, as it
            is or without the edits on it.
        InputError: if the latent does not exist, or the size or a bound cannot be used.
        UnknownSiteError: if the model lacks the dictionary's site.
        AttributionError: if the latent or its gradient is not finite.
    """
    check_attached(hooked)
    check_dictionary(dictionary)
    seed, tv_weight = seed_number(seed), real(tv_weight, "tv_weight")
    latent = int(latent_index(latent, 1, dictionary.n_latents))
    steps = whole(steps, "steps", least=0)
    if sign not in (1, -1) or parametrization not in ("fourier", "pixel"):
        raise InputError(
            f"sign={sign}, parametrization={parametrization!r}: expected 1 or -1, and 'fourier' or "
            "'pixel'"
        )
    Networks(hooked, on_base_mismatch).check_either("the dictionary", dictionary.network)
    shape = _shape(hooked, size)
    largest_shift = max(shape[1:]) // 16 if jitter is None else whole(jitter, "jitter", least=0)
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        # First of all, since autograd refuses every constant that is made in inference mode.
        stack.enter_context(torch.inference_mode(False))
        bounds = _bounds(hooked, shape[0], low, high)
        paint = image_of(parametrization, shape)
        measure = stack.enter_context(_measuring(hooked, dictionary, latent, bounds))
        noise = _noise(measure, paint, parametrization, shape)
        # In units of its spread over noise, a latent's scale does not decide against tv_weight.
        unit = float(noise.std()) or 1.0
        activations: list[float] = []

        def gain(parameters: Tensor) -> Tensor:
            painted = paint(parameters)
            # Shifted anew in each step: what is tied to one pixel grid gains nothing in the mean.
            activation = measure(shifted(painted, largest_shift, generator)[None])[0]
            activations.append(float(activation.detach()))
            # The variation of what is shown, not of the shifted image: a cyclic shift adds an edge.
            return sign * activation / unit - tv_weight * total_variation(painted)

        parameters = _ascended(gain, start(parametrization, shape, generator), steps)
        with torch.no_grad():
            image = paint(parameters)
            activation = float(measure(image[None])[0])
    return Maximization(
        image=image,
        activation=activation,
        activations=torch.tensor(activations, dtype=torch.float64),
        noise=noise,
        latent=latent,
        sign=sign,
        seed=seed,
        low=bounds[0],
        high=bounds[1],
        settings={
            "steps": steps,
            "parametrization": parametrization,
            "jitter": largest_shift,
            "tv_weight": tv_weight,
            "learning_rate": LEARNING_RATE,
        },
    )


def _ascended(gain: Callable[[Tensor], Tensor], parameters: Tensor, steps: int) -> Tensor:
    """Return the parameters after so many steps of Adam up the gain."""
    parameters = parameters.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], LEARNING_RATE, maximize=True)
    for step in range(steps):
        with torch.enable_grad():
            value = gain(parameters)
            # Only the image's gradient: the model's parameters keep theirs.
            (parameters.grad,) = torch.autograd.grad(value, parameters)
        if not (value.isfinite() and parameters.grad.isfinite().all()):
            raise AttributionError(
                f"the latent or its gradient is not finite at step {step}; check the weights for "
                "NaN, or run the model in float32"
            )
        optimizer.step()
    return parameters.detach()


@contextmanager
def _measuring(
    hooked: "HookedModel", dictionary: Dictionary, latent: int, bounds: tuple[Tensor, Tensor]
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Give the function from images (batch, channels, h, w) in [0, 1] to the latent of each."""
    site = hooked.site(dictionary.site.name)
    low, high = bounds

    # Once for the whole ascent, not in each of its steps.
    with evaluating(hooked.model), reading(hooked.model, [site]) as activations:

        def measure(images: Tensor) -> Tensor:
            run(hooked.model, (low + (high - low) * images), "images of this size")
            latents = image_latents(dictionary, activations[site.name], site.channel_axis, "pre")
            return latents[:, latent]

        yield measure


@torch.no_grad()
def _noise(
    measure: Callable[[Tensor], Tensor],
    paint: Callable[[Tensor], Tensor],
    parametrization: Parametrization,
    shape: tuple[int, int, int],
) -> Tensor:
    """Return the latent of random images of full contrast, the same ones whatever the seed."""
    # The same for every seed, so that activations of several seeds compare with one number.
    generator = torch.Generator().manual_seed(0)
    starts = [start(parametrization, shape, generator, 1.0) for _ in range(NOISE_IMAGES)]
    return measure(torch.stack([paint(parameters) for parameters in starts])).cpu().double()


def _shape(
    hooked: "HookedModel", size: int | tuple[int, int] | tuple[int, int, int] | None
) -> tuple[int, int, int]:
    """Return (channels, height, width) of an input image."""
    described = hooked.description.get("input_size")
    if size is None and not (isinstance(described, Sequence) and len(described) in (2, 3)):
        raise InputError(
            "the model's description has no input size; pass size=, the side of its images, "
            "(height, width) or (channels, height, width)"
        )
    wanted = described if size is None else size
    if not isinstance(wanted, list | tuple):
        wanted = (wanted, wanted)
    sides = tuple(whole(side, "a side of size", least=1) for side in wanted)
    if len(sides) not in (2, 3):
        raise InputError(
            f"size {wanted} must be the side, (height, width) or (channels, height, width)"
        )
    channels, height, width = sides if len(sides) == 3 else (_channels(hooked), *sides)
    return channels, height, width


def _channels(hooked: "HookedModel") -> int:
    """Return the number of image channels: described, else that of the first convolution."""
    described = hooked.description.get("in_chans")
    if isinstance(described, int):
        return described
    for module in hooked.model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise InputError(
        "cannot tell how many channels the images have; pass size=(channels, height, width)"
    )


def _bounds(
    hooked: "HookedModel", channels: int, low: Bound | None, high: Bound | None
) -> tuple[Tensor, Tensor]:
    """Return the model inputs that are black and white, (channels, 1, 1) each."""
    mean, std = (hooked.description.get(name) for name in ("mean", "std"))
    if isinstance(mean, Sequence) and isinstance(std, Sequence):
        centre, spread = (torch.tensor(part, dtype=torch.float32) for part in (mean, std))
        black, white = -centre / spread, (1 - centre) / spread
    else:
        black, white = torch.tensor([[-2.0], [2.0]], dtype=torch.float32)
    # A bound of the caller's replaces that side alone: the other keeps what the model describes.
    try:
        black = black if low is None else torch.as_tensor(low, dtype=torch.float32)
        white = white if high is None else torch.as_tensor(high, dtype=torch.float32)
        usable = all(bound.numel() in (1, channels) for bound in (black, white))
    except (TypeError, ValueError, RuntimeError):  # no numbers
        usable = False
    if not usable:
        raise InputError(
            f"low={low!r:.80}, high={high!r:.80}: expected one number, or one for each of "
            f"{channels} channels"
        )
    black, white = (bound.flatten().expand(channels)[:, None, None] for bound in (black, white))
    if not (white > black).all():
        raise InputError(f"low={low} must be below high={high} in every channel")
    return black, white
