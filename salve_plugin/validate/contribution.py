"""A class as the target of an attribution, by the latents that its logit is made of.

With g(p) = ∂(logit of the class − mean logit)/∂x(p) at the dictionary's site, latent l moves the
class at position p by e_l(p) = g(p) · ∂x̂(p)/∂z_l, which is g(p) · v_l for a linear decoder, and
contributes Σ_p z_l(p) e_l(p): gradient times code. At the classifier's input g is the class's row
of W minus the mean row, and the contributions add up to its logit less a constant and the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from salve_plugin.adapter import adapter_of
from salve_plugin.discover.recording.labels import match_classes
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.faces.one_line import one_line
from salve_plugin.integers import whole

if TYPE_CHECKING:
    from salve_plugin.hooks import HookedModel


@dataclass(frozen=True)
class Contribution:
    """The latents that a class's logit is made of, found in each image; see `contribution`.

    Attributes:
        label: the class, or one for each image.
        top: how many latents; None takes all.
    """

    __repr__ = one_line

    label: int | str | tuple[int, ...]
    top: int | None

    def classes(self, hooked: "HookedModel", batch: int, n_classes: int) -> Tensor:
        """Return the class of each image, (batch,).

        Raises:
            InputError: if there is no such class, or there are not as many as images.
        """
        label = self.label
        if isinstance(label, str):
            label = _class_named(label, hooked, n_classes)
        indices = [label] if isinstance(label, int) else list(label)
        wrong = [index for index in indices if not 0 <= index < n_classes]
        if wrong:
            raise InputError(
                f"there is no class {wrong[0]!r}; the model has {n_classes}, from 0 to "
                f"{n_classes - 1}"
            )
        classes = torch.tensor(indices)
        if len(classes) not in (1, batch):
            raise InputError(
                f"the contribution names {len(classes)} classes for {batch} images; pass 1 or "
                f"{batch}"
            )
        return classes.expand(batch)


def contribution(
    label: int | str | Sequence[int] | Tensor, *, top: int | None = 10
) -> Contribution:
    """Return a target for `LayerGradFam` and `LayerCodeMap`: a class, by the latents it is made of.

    In each image, the latents that contribute most to the class's logit (code times the gradient of
    the logit, taken relative to the mean logit; see the page on validation) are weighted by that
    gradient and added up: by the gradient's sum over positions in `LayerGradFam`, by that at each
    position in `LayerCodeMap`.

    Args:
        label: a class by index, or by a name that the model's library knows it by; or a class
            index for each image, such as the predicted ones (batch,).
        top: how many latents at most: those that speak for the class. None takes all latents, which
            gives the class's own map but for what the dictionary does not reconstruct.

    Raises:
        InputError: if `top` is less than 1, or the label is none of these.
    """
    if top is not None and whole(top, "top") < 1:
        raise InputError(f"top must be at least 1, got {top}; None takes all latents")
    return Contribution(label if isinstance(label, str) else _indices(label), top)


def _indices(label: object) -> int | tuple[int, ...]:
    """Return a class index, or one for each image, as Python's integers."""
    several = isinstance(label, list | tuple) or bool(getattr(label, "ndim", 0))
    each = [*label] if several else [label]  # type: ignore[misc] # it is one of these
    try:
        classes = tuple(whole(value, "label") for value in each)
    except InputError as error:
        raise InputError(
            f"label {label!r} is no class; pass an index or a name, or one index for each image"
        ) from error
    return classes if several else classes[0]


def _class_named(name: str, hooked: "HookedModel", n_classes: int) -> int:
    """Return the index of the model's class that has this name."""
    try:
        names = adapter_of(hooked.model).class_names(hooked.model)
    except UnsupportedModelError:
        names = None
    if names is not None and len(names) != n_classes:
        names = None  # they are those of the classifier that it had before
    return match_classes([name], names, n_classes, what="the target's class")[0]
