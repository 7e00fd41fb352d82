"""Images on their way into a model: what does not fit is told in terms of the images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from salve_plugin.errors import InputError, SalveError


def fitted(
    images: Tensor, model: nn.Module, what: str, device: torch.device | str | None = None
) -> Tensor:
    """Return images where a model's parameters are, in their floating type.

    Args:
        images: as a loader gave them.
        model: the bare model.
        what: they are, for the message.
        device: another one than the parameters'.

    Raises:
        InputError: if there is no such device, or no room on it.
    """
    parameter = next(model.parameters(), torch.empty(0))
    device = parameter.device if device is None else device
    try:
        images = images.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"{what} cannot be moved to device {str(device)!r}: {_first_line(error)}; choose "
            "another device, or leave it out to use the model's"
        ) from error
    if images.is_floating_point() and parameter.is_floating_point():
        return images.to(parameter.dtype)
    return images


@contextmanager
def feeding(images: object, what: str, probe: Tensor | None = None) -> Iterator[None]:
    """Name the images when a model's own code refuses them.

    Args:
        images: what the model is called with in the context.
        what: they are, for the message.
        probe: images that the model is known to accept.

    Raises:
        InputError: instead of whatever the model raised.
    """
    try:
        yield
    except (SalveError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        shown = _described(images)
        known = "" if probe is None else f"; it was attached with images {_described(probe)}"
        remedy = "check shape, number type and device"
        if isinstance(images, Tensor) and not images.is_floating_point():
            remedy = "convert them: images.float() / 255, normalized as the model was trained"
        elif isinstance(images, Tensor) and images.ndim == 3:
            remedy = "add a batch axis: images[None]"
        elif isinstance(images, Tensor) and images.ndim == 4 and images.shape[-1] in (1, 3):
            remedy = "put the channels first: images.permute(0, 3, 1, 2)"
        raise InputError(
            f"{what}, {shown}, cannot go through the model ({_first_line(error)}); expected "
            f"(batch, channels, height, width), floating point{known}. To do: {remedy}"
        ) from error


def _described(images: object) -> str:
    if isinstance(images, Tensor):
        return f"of shape {tuple(images.shape)} and type {images.dtype}"
    if isinstance(images, tuple | list):
        return ", ".join(_described(part) for part in images)
    return f"a {type(images).__name__}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
