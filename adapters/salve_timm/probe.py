"""A small batch that a model accepts, and a quiet model to run it on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from salve_plugin.errors import UnsupportedModelError
from salve_plugin.modes import evaluating

Result = TypeVar("Result")

COMMON_SIDES = (64, 224, 128, 256, 384, 32)
"""Image sizes to try where a model says nothing, or something wrong, about its own."""

IMAGES = 2
"""Images in a probe batch: two, so that a head that mixes images is noticed."""

WRAP = (
    "put it into a module whose forward(images) returns the logits alone, such as "
    "self.model(pixel_values=images).logits, and attach that: attach(wrapper, "
    "head='model.classifier')"
)
"""What to do with a model that takes or returns something else than most."""


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model is left as it was found, on error too."""
    # Left even if the caller is in it: autograd refuses what is made in inference mode.
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        yield


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """Return timm's description of the weights as a dict, empty where there is none."""
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return dict(cfg) if isinstance(cfg, dict) else dict(vars(cfg))


def probed(
    model: nn.Module, run: Callable[[Tensor], Result], given: Tensor | None = None
) -> tuple[Tensor, Result]:
    """Return a seeded batch that the model accepts, and what `run` returns for it.

    The shape is found by trial, likeliest first: timm's own description is absent or wrong for a
    model that was built directly or with another `in_chans` or `img_size`.

    Args:
        model: any image classifier, in `quiet`.
        run: a forward pass on the batch; any error of it rules the batch's shape out.
        given: a batch of the caller's, the only one to be tried then.

    Raises:
        UnsupportedModelError: if no shape is accepted; the message quotes the model's complaint.
    """
    reference = next(model.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    shapes = _shapes(model) if given is None else [tuple(given.shape)]
    complaint: Exception | None = None
    for shape in shapes:
        images = torch.randn(shape, generator=generator) if given is None else given.detach()
        images = images.to(reference.device, reference.dtype)
        try:
            return images, run(images)
        except Exception as error:  # models refuse a shape by asserts, RuntimeErrors and others
            # The first is about the likeliest shape, and says most.
            complaint = complaint or error
    raise UnsupportedModelError(
        f"{type(model).__name__} accepts no probe batch of the shapes {shapes} "
        f"({type(complaint).__name__}: {complaint}). {_remedy(complaint)}"
    ) from complaint


def _remedy(complaint: Exception | None) -> str:
    # The model's own call, not a layer's inside: it takes other arguments than images.
    if isinstance(complaint, TypeError) and "forward() " in str(complaint):
        return f"If it takes more than images, or by keyword only, {WRAP}"
    return "Pass a batch that it accepts: attach(model, probe=images)"


def _shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Return (images, channels, height, width) to try, likeliest first."""
    cfg = pretrained_cfg(model)
    described = tuple(cfg.get("input_size") or ())
    channels = [described[0]] if described else []
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None:
        channels.append(first.in_channels)
    channels += [3, 1]

    sizes = []
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:
        sizes.append((size, size) if isinstance(size, int) else tuple(size))
    if described:
        sizes.append(described[1:])
    sizes += [(side, side) for side in COMMON_SIDES]
    return [(IMAGES, c, h, w) for h, w in dict.fromkeys(sizes) for c in dict.fromkeys(channels)]
