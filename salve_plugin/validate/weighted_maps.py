"""From activation and gradient to the maps that are handed out, or why there are none."""

from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import AttributionError
from salve_plugin.validate.module_sides import ModuleSide, side_name


def finished(
    heat: Float[Tensor, "batch channels h w"], *, relu: bool, summed: bool = True
) -> Float[Tensor, "batch maps h w"]:
    """Return the maps as they are handed out.

    Args:
        heat: by channel.
        relu: keep only the positive part.
        summed: add the channels up.

    Raises:
        AttributionError: if they are not finite.
    """
    heat = heat.sum(1, keepdim=True) if summed else heat
    if not heat.isfinite().all():
        raise AttributionError(
            "the map has values that are not finite; check the images and weights for NaN, or run "
            "the model in float32"
        )
    return heat.relu() if relu else heat


def weighted_map(
    activation: Float[Tensor, "batch channels h w"], gradient: Float[Tensor, "batch channels h w"]
) -> Float[Tensor, "batch channels h w"]:
    """Return each channel times its gradient's mean over positions; the sum is Grad-FAM's map.

    >>> import torch
    >>> activation = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)
    >>> weighted_map(activation, gradient=torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)).tolist()
    [[[[2.0, 4.0]]]]
    """
    return gradient.mean((2, 3), keepdim=True) * activation


def no_dependence(layer: ModuleSide) -> str:
    """Return what to say where a latent does not depend on the layer."""
    return (
        f"the latent does not depend on the {side_name(layer)} of {type(layer[0]).__name__}; "
        "choose a layer that runs before the dictionary's site"
    )


def no_gradient(layer: ModuleSide) -> str:
    """Return what to say where a latent depends on no position of the layer."""
    return (
        f"no position of the {side_name(layer)} of {type(layer[0]).__name__} has any influence on "
        "the latent, so a map would be all zero. With class-token pooling that is so after the "
        "last attention: pass the norm before it (for a timm ViT blocks[-1].norm1), which "
        "LayerGradFam.of(hooked, dictionary) finds. It is not that the latent is dead or off "
        "(then the map is zero without an error)"
    )
