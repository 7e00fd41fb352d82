"""The gradient of the model's loss at the head's input, for learners that select by it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.errors import InputError
from salve_plugin.kinds import of_kind
from salve_plugin.site import HEAD_INPUT, Site

if TYPE_CHECKING:
    from salve_plugin.hooks import HookedModel


def head_gradient(
    hooked: "HookedModel", site: Site | str = HEAD_INPUT
) -> Callable[[Float[Tensor, "rows width"]], Float[Tensor, "rows width"]]:
    """Return the gradient of the model's loss at the head's input, as a function of its rows.

    The loss is the cross-entropy against the class that the model itself predicts, so no labels
    are needed. With logits W a + b and probabilities p its gradient is Wᵀ (p − y), y being one at
    the predicted class: no pass through the model.

    Args:
        hooked: an attached classifier.
        site: what its head reads; every row is one image.

    Raises:
        UnknownSiteError: if there is no such site.
        InputError: if the classifier does not read it, reads other sites too, reads several rows
            of each image, or has a single class.
    """
    site = hooked.site(site) if isinstance(site, str) else site
    of_kind(site, Site, "site", "a Site or its name")
    if site.layout != "pooled":
        raise InputError(
            f"site '{site.name}' has layout '{site.layout}': the head reads no single row of it; "
            "choose a pooled site, or give fit a gradient of your own"
        )
    weight, bias = hooked.unembed(site)
    if len(weight) < 2:
        raise InputError(
            f"the head at '{site.name}' has {len(weight)} class: its cross-entropy is 0 whatever "
            "the activations; give fit a gradient of your own"
        )

    def gradient(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        w, b = weight.to(rows), bias.to(rows)
        logits = functional.linear(rows, w, b)
        excess = logits.softmax(1) - functional.one_hot(logits.argmax(1), len(w))
        return excess @ w

    return gradient
