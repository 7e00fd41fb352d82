"""How the positions and features of an activation are laid out."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import AttributionError, InputError
from salve_plugin.site import Site

Shape = tuple[int, ...]

Tokens = Literal["NHWC"] | tuple[int, tuple[int, int]] | None
"""Layout of a layer: None is a map (batch, K, h, w), "NHWC" a map (batch, h, w, K), and
(prefix count, (h, w)) are tokens (batch, prefix count + h w, K) with the patches in row order."""


def checked_tokens(tokens: Tokens) -> Tokens:
    """Return `tokens` if it is one of the three forms.

    Raises:
        InputError: if it is none of them.
    """
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

    Args:
        tensor: (batch, K, h, w), (batch, h, w, K) or (batch, prefix + h w, K), as `tokens` says.
        tokens: its layout.

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


def has_positions(site: Site) -> bool:
    """Say whether a heat map of the site can be drawn: a map, or tokens with a known grid."""
    return site.layout in ("nchw", "nhwc") or (site.layout == "tokens" and site.grid is not None)


def tokens_of(site: Site) -> Tokens:
    """Return the layout of a site in the terms of `Tokens`.

    Raises:
        AttributionError: if it has no positions.
    """
    if site.layout == "nchw":
        return None
    if site.layout == "nhwc":
        return "NHWC"
    if site.layout == "tokens" and site.grid is not None:
        return (site.prefix_tokens, site.grid)
    raise AttributionError(
        f"site '{site.name}' ({site.layout}) has no map or patch grid to show; choose a layer that "
        "has positions"
    )


def site_axis(shape: Shape, site: Site) -> int:
    """Return the axis of the features of a site's activation.

    Raises:
        InputError: if the activation is not laid out as the site says.
    """
    fits = {
        # Heads that are 1x1 convolutions pool to (batch, width, 1, 1).
        "pooled": len(shape) >= 2 and math.prod(shape[2:]) == 1,
        "tokens": len(shape) == 3,
        "nchw": len(shape) == 4,
        "nhwc": len(shape) == 4,
    }[site.layout]
    if not fits:
        raise InputError(
            f"the activation at site '{site.name}' has shape {shape}, which is not the site's "
            f"layout '{site.layout}'; attach the model again, or pass a site with the right layout"
        )
    return site.channel_axis


def likely_axis(
    shape: Shape, width: int | None, tokens: Tokens, trained_at: Site | None, *, is_layer: bool
) -> int:
    """Return the axis of the features of an activation whose layout nobody has said.

    It is the last one, except in a map, where it is the one that is as long as the dictionary is
    wide. If both are, the site that the dictionary was trained at settles it.

    Args:
        shape: of the activation, batch first.
        width: how many features the dictionary reads, if it says so.
        tokens: the layer's layout.
        trained_at: the dictionary's own site, if it has one.
        is_layer: whether the activation is the layer's own, so that `tokens` describes it.

    Raises:
        InputError: if the layout cannot be told for certain, or `tokens` says another.
    """
    if len(shape) != 4:
        return len(shape) - 1
    by_tokens = 3 if tokens == "NHWC" else 1
    # From the certain to the less certain: the shape, the dictionary's own site, what the caller
    # said of this very activation. A guess between equal axes would draw a wrong map without a
    # word, so what none of them settles is refused.
    fitting = [axis for axis in (1, 3) if shape[axis] == width]
    if len(fitting) == 1:
        axis = fitting[0]
    elif shape[1] != shape[3]:
        return by_tokens  # the dictionary itself refuses another width than its own
    elif trained_at is not None and trained_at.layout in ("nchw", "nhwc"):
        axis = trained_at.channel_axis
    elif is_layer or math.prod(shape[2:]) == 1:  # a 1 x 1 map of width 1 reads alike both ways
        axis = by_tokens
    else:
        raise InputError(
            f"the features of the dictionary's activation, of shape {shape}, may lie on axis 1 "
            "(NCHW) or 3 (NHWC); pass site=salve.Site(...), whose layout settles it, with the "
            "model itself as forward_func, or a dictionary that has its own site"
        )
    if is_layer and axis != by_tokens:
        raise InputError(
            f"the layer is the dictionary's own activation, of shape {shape} with its features on "
            f"axis {axis}, but tokens={tokens!r} puts them on axis {by_tokens}; pass "
            f"tokens={'NHWC' if axis == 3 else None!r}"
        )
    return axis
