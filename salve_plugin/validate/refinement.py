"""A coarse and a fine map of one thing, as one map."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.errors import InputError
from salve_plugin.kinds import of_kind


def product_map(
    coarse: Float[Tensor, "batch one h w"], fine: Float[Tensor, "images ones H W"]
) -> Float[Tensor, "images ones H W"]:
    """Return the product of the positive parts of two maps, on the grid of the finer one.

    A deep site knows which object it is and not quite where; an earlier, finer one knows where
    things are, and which are of the object less well. What both point at is left.

    Args:
        coarse: of a deep site, as an attribution returns it; it is enlarged bilinearly.
        fine: of an earlier site, of the same images and latent, or class.

    Raises:
        InputError: if they are not maps of as many images.

    >>> coarse = torch.tensor([[[[2.0, -1.0]]]])
    >>> product_map(coarse, fine=torch.tensor([[[[1.0, 3.0]]]])).tolist()
    [[[[2.0, 0.0]]]]
    """
    for heat, name in ((coarse, "coarse"), (fine, "fine")):
        of_kind(heat, Tensor, name, "a tensor (batch, 1, h, w)")
    if coarse.ndim != 4 or fine.ndim != 4 or coarse.shape[:2] != fine.shape[:2]:
        raise InputError(
            f"maps of shape {tuple(coarse.shape)} and {tuple(fine.shape)} are not of the same "
            "images; pass two attributions of them, (batch, 1, h, w)"
        )
    size = tuple(fine.shape[2:])
    enlarged = functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return enlarged.clamp(min=0) * torch.clamp(fine, min=0)
