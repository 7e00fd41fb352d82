"""The gradient of a class's logit, relative to the mean logit, at a dictionary's site."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import AttributionError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.validate.module_sides import ModuleSide, side_name
from salve_plugin.validate.tracing import joined, pull_back, traced


def class_gradient(
    hooked: HookedModel,
    site: ModuleSide,
    features: Tensor,
    rows: Float[Tensor, "batch width"],
    run: Callable[[], object],
    device_ids: Sequence[int] | None = None,
) -> Tensor:
    """Return the gradient of each image's class at the site, of the shape of `features`.

    A logit says nothing by itself, since the softmax takes no notice of what is added to all; so
    it is taken less the mean logit. A single logit is that of class 1, its negative that of 0.

    Args:
        hooked: the attached model.
        site: where the gradient is wanted.
        features: the activation there, batch first.
        rows: of `class_rows`, that of each image's class.
        run: the forward pass, in eval mode; not needed at the classifier's input.
        device_ids: order of the devices, as in `traced`.

    Raises:
        InputError: if the classifier reads several sites, or several rows of each image.
        AttributionError: if the class does not depend on the site.
    """
    head = hooked.site(_head_name(hooked))
    # By module, not by name: the dictionary's site may be another name for the same place.
    modules = [hooked.model.get_submodule(path) for path in {head.module, *head.readers}]
    if site[1] == head.side and any(site[0] is module for module in modules):
        # The classifier is linear in its input, whatever the image: nothing has to run.
        return rows.to(features).reshape(features.shape)
    with traced(
        run, site, (hooked.model.get_submodule(head.module), head.side), device_ids
    ) as graph:
        read = joined(graph.site)
        gradient = pull_back(graph, rows.to(read.device).reshape(read.shape), {})
    if gradient is None:
        raise AttributionError(
            f"no class depends on the {side_name(site)} of {type(site[0]).__name__}; choose a "
            "dictionary of a site that runs before the classifier"
        )
    return gradient


def class_rows(hooked: HookedModel) -> Float[Tensor, "classes width"]:
    """Return the gradient of each logit less the mean logit at the classifier's input.

    Raises:
        InputError: if the classifier reads several sites, or several rows of each image.
    """
    weight, _ = hooked.unembed(_head_name(hooked))
    if len(weight) == 1:
        weight = weight / 2  # the one logit is the difference of two, half of it from each
        return weight.new_tensor([[-1.0], [1.0]]) * weight
    return weight - weight.mean(0)


def _head_name(hooked: HookedModel) -> str:
    """Return the name of the one site that the logits are read from."""
    names = hooked.head_sites
    if not names:
        raise InputError(
            f"{type(hooked.model).__name__} has no site at its classifier, so what a latent does "
            "to a class is unknown; weight the latents yourself: target={latent: weight}"
        )
    site = hooked.site(names[0])
    if site.layout != "pooled":
        raise InputError(
            f"the classifier reads site '{site.name}' of layout '{site.layout}', several rows of "
            "each image; weight the latents yourself: target={latent: weight}"
        )
    return names[0]
