"""Images on their way into a model: where and in the type that it computes, or refused in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from salve_plugin.errors import InputError, SalveError

COMPLAINTS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What models raise at images that they do not take."""


def as_input(model: nn.Module, images: Tensor, device: torch.device | None = None) -> Tensor:
    """Return images on the model's device and, if they are floating-point, in its floating type.

    Args:
        model: the first of its floating-point parameters decides.
        images: of any shape; returned themselves if nothing is to be changed. What was made in
            inference mode is copied outside of it, where no gradient could go through it.
        device: another device than the model's.

    Raises:
        InputError: if they are no tensor, or cannot be moved there.
    """
    if not isinstance(images, Tensor):
        raise InputError(
            f"images were expected, a tensor (batch, channels, height, width); got "
            f"{type(images).__name__}"
        )
    floating = (weight for weight in model.parameters() if weight.is_floating_point())
    weight = next(floating, next(model.parameters(), None))
    # A model without parameters computes in whatever it is given.
    target = device or (images.device if weight is None else weight.device)
    kind = images.dtype
    if weight is not None and weight.is_floating_point() and images.is_floating_point():
        kind = weight.dtype
    try:
        taken = images.to(target, kind)
    except COMPLAINTS as error:
        raise InputError(
            f"images on '{images.device}' cannot be moved to '{target}': {_first_line(error)}"
        ) from error
    stale = taken.is_inference() and not torch.is_inference_mode_enabled()
    return taken.clone() if stale else taken


def usable_device(device: torch.device | str | None) -> torch.device | None:
    """Return the device, tried.

    Raises:
        InputError: if there is none of that name here.
    """
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (*COMPLAINTS, NotImplementedError) as error:
        raise InputError(
            f"device {device!r} cannot be used here ({_first_line(error)}); leave it out to use "
            "the model's own, or name one that there is"
        ) from error


@contextmanager
def refused_in_words(model: object, images: object, name: str) -> Iterator[None]:
    """Turn what a model raises at images into an InputError that describes them.

    Args:
        model: that runs within the context.
        images: that it is given.
        name: of the images, for the message.

    Raises:
        InputError: instead of torch's own error; that is its cause.
    """
    try:
        yield
    # What is said in words already stays as it is, and memory is no fault of the images.
    except (SalveError, torch.OutOfMemoryError):
        raise
    except COMPLAINTS as error:
        # torch's own message speaks of tensors that the caller has never seen.
        if isinstance(model, nn.Module) and _is_of_inference_mode(model):
            raise InputError(
                f"{type(model).__name__} was made in inference mode, so that no gradient goes "
                "through it; make it outside of torch.inference_mode(), or attach a copy, as "
                "copy.deepcopy makes it"
            ) from error
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(
            f"{type(model).__name__} does not take {name}, {_described(images)} ({reason}); "
            f"expected are {_expected(model)}{_remedy(images)}"
        ) from error


def run(model: nn.Module, images: Tensor, name: str, device: torch.device | None = None) -> Any:
    """Return what the model gives for images, which are moved and cast as it needs them.

    Raises:
        InputError: if it does not take them.
    """
    images = as_input(model, images, device)
    with refused_in_words(model, images, name):
        return model(images)


def _is_of_inference_mode(model: nn.Module) -> bool:
    return any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


def _described(images: object) -> str:
    if not isinstance(images, Tensor):
        return f"a {type(images).__name__}"
    kind = str(images.dtype).removeprefix("torch.")
    return f"{kind} of shape {tuple(images.shape)} on '{images.device}'"


def _expected(model: object) -> str:
    wanted = "images (batch, channels, height, width)"
    if not isinstance(model, nn.Module):
        return wanted
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None:
        wanted = f"images (batch, {first.in_channels}, height, width)"
    if weight is None:
        return wanted
    kind = str(weight.dtype).removeprefix("torch.")
    return f"{wanted} of {kind} on '{weight.device}', normalized as the model was trained"


def _remedy(images: object) -> str:
    """Return what to do where the shape or the type gives away what is wrong."""
    if isinstance(images, Tensor) and not images.is_floating_point() and not images.is_complex():
        return ". Convert them: images.float() / 255, normalized as the model was trained"
    if isinstance(images, Tensor) and images.ndim == 3:
        return ". Add a batch axis: images[None]"
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[-1] in (1, 3):
        return ". Put the channels first: images.permute(0, 3, 1, 2)"
    return ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
