"""How the positions and features of an activation are laid out."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import InputError

Tokens = Literal["NHWC"] | tuple[int, tuple[int, int]] | None
"""Layout of a layer: None is a map (batch, K, h, w), "NHWC" a map (batch, h, w, K), and
(prefix count, (h, w)) are tokens (batch, prefix count + h w, K) with the patches in row order."""


def checked_tokens(tokens: Tokens) -> Tokens:
    """Return `tokens` if it is one of the three forms."""
    if tokens is None or tokens == "NHWC":
        return tokens
    try:
        prefix, (height, width) = tokens
        right = prefix >= 0 and height > 0 and width > 0
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InputError(
            f"tokens={tokens!r} is unknown; use None for an NCHW map, 'NHWC', or "
            "(prefix count, (h, w)) for tokens"
        )
    return tokens


def as_map(tensor: Tensor, tokens: Tokens) -> Float[Tensor, "batch channels h w"]:
    """Return a layer's activation as an NCHW map without prefix tokens, in float32 or wider.

    >>> as_map(torch.zeros(2, 5, 64), tokens=(1, (2, 2))).shape
    torch.Size([2, 64, 2, 2])

    Raises:
        InputError: if the shape does not fit the layout; the message says what would.
    """
    shape = tuple(tensor.shape)
    tensor = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    if tokens is None or tokens == "NHWC":
        if len(shape) != 4:
            raise InputError(
                f"a layer of shape {shape} is not a 4-d map; for (batch, token, channel) pass "
                "tokens=(prefix count, (h, w)), else choose a layer that has positions"
            )
        return tensor if tokens is None else tensor.movedim(3, 1)
    prefix, (height, width) = tokens
    if len(shape) != 3 or shape[1] != prefix + height * width:
        raise InputError(
            f"a layer of shape {shape} does not fit tokens={tokens}: expected (batch, "
            f"{prefix} + {height} x {width}, channels); for a 4-d map use tokens=None or 'NHWC'"
        )
    return tensor[:, prefix:].transpose(1, 2).reshape(shape[0], shape[2], height, width)


def channel_axis(features: Tensor, tokens: Tokens, width: int | None) -> int:
    """Return the axis of the features at the site, whose layout the constructor is not told."""
    if features.ndim != 4:
        return features.ndim - 1
    first, second = (3, 1) if tokens == "NHWC" else (1, 3)
    fits_only_second = features.shape[first] != width == features.shape[second]
    return second if fits_only_second else first
