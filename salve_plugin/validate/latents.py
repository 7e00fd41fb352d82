"""From a site's activation to one number per image and latent, and which latent is meant."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from salve_plugin.control.operators.base import real
from salve_plugin.errors import InputError
from salve_plugin.validate.contribution import Contribution

Stage = Literal["pre", "post"]
"""Which value of a latent: `pre` its pre-activation (signed), `post` its code."""

OneEach = int | Tensor | Sequence[int] | Sequence[tuple[int]] | None
"""One latent for all images or one for each, in any of Captum's forms."""

LatentTarget = OneEach | Mapping[int, int | float] | Contribution
"""That, or a weighted sum of latents: weights by latent, a floating-point tensor (latents,) or
(batch, latents), or a class by the latents that it is made of."""


@runtime_checkable
class Encodes(Protocol):
    """The least that Grad-FAM needs of a dictionary: any module with this method will do.

    It takes rows (..., width) and returns one value a latent, (..., latents), so that gradients
    pass. `salve_plugin.encoder` makes one of any function.
    """

    def encode(self, x: Any, /) -> Any:
        """Return the latents of rows: the code."""


def check_encodes(dictionary: object, stage: Stage) -> None:
    """Refuse what has not the method that a stage needs, and an unknown stage.

    Raises:
        InputError: that names it.
    """
    if stage not in ("pre", "post"):
        raise InputError(f"stage {stage!r} is unknown; use 'pre' or 'post'")
    for method in ("encode",) if stage == "post" else ("encode", "pre_activation"):
        # A text has a method of that name, too.
        if isinstance(dictionary, str) or not callable(getattr(dictionary, method, None)):
            remedy = "give it one, or wrap a function: salve.encoder(function, n_latents=...)"
            if method != "encode":
                remedy = "give it one, or pass stage='post', which explains the code of its encode"
            raise InputError(
                f"{type(dictionary).__name__} has no method '{method}', from rows (..., width) to "
                f"latents (..., latents); {remedy}"
            )


def image_latents(
    dictionary: Encodes, activation: Tensor, channel_axis: int, stage: Stage
) -> Float[Tensor, "batch latents"]:
    """Return every latent of every image, as its mean over all positions.

    The mean is over all that lies between the batch and the features: pixels of a map, tokens
    including the class token and registers; for a pooled activation it is the latent itself. It
    is computed in the dictionary's precision and on its device, never in half precision because
    the network is.

    Args:
        dictionary: encodes rows of features.
        activation: batch first, features on `channel_axis`.
        channel_axis: 1 for pooled (batch, D), (batch, D, h, w); the last for tokens and NHWC.
        stage: `pre` or `post`.

    Raises:
        InputError: if the features are not as many as the dictionary reads.
    """
    rows = activation.movedim(channel_axis, -1)
    width = getattr(dictionary, "width", rows.shape[-1])
    if rows.shape[-1] != width:
        raise InputError(
            f"the dictionary reads {width} features but the site's activation has shape "
            f"{tuple(activation.shape)}, features on axis {channel_axis}; name the site that the "
            "dictionary was trained on"
        )
    # To the dictionary's own dtype: sums over a thousand positions drown in half precision.
    rows = rows.to(reference_of(dictionary, rows))
    # A dictionary run in an autocast region would round its latents to half precision.
    with torch.autocast(rows.device.type, enabled=False):
        encode = getattr(dictionary, "pre_activation" if stage == "pre" else "encode")
        # One axis of positions, whatever the layout: own encoders need to take no more than that.
        given = rows.flatten(1, -2) if rows.ndim > 2 else rows
        latents: Tensor = encode(given)
    if not isinstance(latents, Tensor) or latents.shape[:-1] != given.shape[:-1]:
        found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise InputError(
            f"the dictionary returns {found} for rows of shape {tuple(given.shape)}; expected is a "
            "tensor with the same axes but for the last, which holds the latents"
        )
    return latents.mean(1) if latents.ndim > 2 else latents


def is_weighted(target: object) -> TypeGuard[Mapping[int, int | float] | Tensor]:
    """Say whether a target gives weights: by latent, or a floating-point tensor."""
    return isinstance(target, Mapping) or (
        isinstance(target, Tensor) and target.is_floating_point()
    )


def latent_weights(
    target: Mapping[int, int | float] | Tensor, batch: int, n_latents: int
) -> Float[Tensor, "batch latents"]:
    """Return the weight of every latent in every image.

    Args:
        target: weights by latent, or (latents,), or (batch, latents).
        batch: the number of images.
        n_latents: how many latents there are.

    Raises:
        InputError: if a latent does not exist, a weight is not finite, or there is not one for
            each latent.
    """
    if isinstance(target, Mapping):
        if not target:
            raise InputError("the target is an empty dict; name at least one latent")
        index = latent_index(list(target), len(target), n_latents)
        weights = torch.zeros(n_latents, dtype=torch.float64)
        numbers = [real(value, "a weight of the target") for value in target.values()]
        weights[index] = torch.tensor(numbers, dtype=torch.float64)
    else:
        weights = target.detach()
    if weights.shape not in ((n_latents,), (1, n_latents), (batch, n_latents)):
        raise InputError(
            f"weights of shape {tuple(weights.shape)} are not one for each of the {n_latents} "
            f"latents; pass ({n_latents},), ({batch}, {n_latents}) or a dict {{latent: weight}}"
        )
    if not weights.isfinite().all():
        raise InputError("a weight of the target is not finite; check it for NaN")
    return weights.expand(batch, n_latents)


def latent_index(target: LatentTarget, batch: int, n_latents: int) -> Int[Tensor, " batch"]:
    """Return the latent of each image from a target in any of Captum's forms.

    Args:
        target: one latent for all images (an int, a tensor of one element, a tuple of one int), or
            one for each (a tensor of `batch` elements, a list of ints or of tuples of one int).
            None stands for latent 0 of a dictionary that has only one.
        batch: the number of images.
        n_latents: how many latents there are.

    Raises:
        InputError: if a latent does not exist, or there are not as many as images.
    """
    if target is None:
        if n_latents != 1:
            raise InputError(
                f"target is None but the dictionary has {n_latents} latents; pass a latent index"
            )
        target = 0
    try:
        index = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"target {target!r} is not a latent index or one per image") from error
    if index.dtype.is_floating_point or index.dtype in (torch.bool, torch.complex64):
        raise InputError(
            f"target {target!r} is not a latent index; pass integers, or weights as a tensor "
            f"({n_latents},)"
        )
    # Captum passes a list of tuples where a class has several axes; a latent has one.
    index = index.detach().cpu().long().flatten()
    if len(index) not in (1, batch):
        raise InputError(f"target names {len(index)} latents for {batch} images; pass 1 or {batch}")
    if ((index < 0) | (index >= n_latents)).any():
        raise InputError(f"target {target!r} is out of range: the latents are 0 to {n_latents - 1}")
    return index.expand(batch)


def reference_of(dictionary: Encodes, rows: Tensor) -> Tensor:
    """Return a tensor of the dtype and device in which the dictionary computes."""
    if isinstance(dictionary, nn.Module):
        # Buffers too: a dictionary that is not trained any more may have no parameters.
        for tensor in (*dictionary.parameters(), *dictionary.buffers()):
            if tensor.is_floating_point():
                return tensor
    return rows.new_empty(0, dtype=torch.promote_types(rows.dtype, torch.float32))
