"""Component attribution: what each component of a network adds to each image's margin (CoAR).

Shah, Ilyas & Madry 2024 (arXiv 2404.11534): the outputs of a network with random components ablated
are regressed on the masks that say which are left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.operators.base import real
from salve_plugin.control.writers.evidence import solved
from salve_plugin.errors import InputError
from salve_plugin.integers import whole

HELD_OUT = 0.1
"""Share of the masks on which the regression is judged."""

Margins = Callable[[Bool[Tensor, " components"]], Float64[Tensor, " images"]]
"""Gives every image's margin when only the components that are true are left."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """What components add to the margins of images.

    Attributes:
        effects: (components, images): by how much the component's presence raises the margin.
        fidelity: correlation of predicted and true margins on masks that were held out, the mean
            over images; NaN where no margin ever changes.
    """

    effects: Float64[Tensor, "components images"]
    fidelity: float


def attribute(
    margins: Margins, components: int, *, masks: int, keep: float, ridge: float, seed: int
) -> Attribution:
    """Estimate what each component adds to each image's margin.

    Args:
        margins: evaluates a mask.
        components: how many there are.
        masks: how many are drawn; a tenth is held out.
        keep: the probability with which a component is left.
        ridge: of the regression, in units of the mean variance of a mask's entries.
        seed: of the masks.

    Raises:
        InputError: if a number is out of range, or the ridge too small for so few masks.
    """
    if not 0 < real(keep, "keep") < 1:
        raise InputError(f"keep {keep} is to be between 0 and 1, e.g. 0.95")
    if whole(masks, "masks") < 20:
        raise InputError(f"{masks} masks are too few to regress and to judge; give hundreds")
    random = torch.Generator().manual_seed(seed)
    # Of one type, whatever torch's default is: a seed stands for the same masks everywhere.
    drawn = torch.rand(masks, components, generator=random, dtype=torch.float32) < keep
    outputs = torch.stack([margins(mask) for mask in drawn])
    # Masks are independent, so that the first tenth is as good a sample as any.
    held_out = max(2, round(HELD_OUT * masks))
    design, response = drawn[held_out:].double(), outputs[held_out:]
    centre, level = design.mean(0), response.mean(0)
    # Centred, the regression has its intercept without a penalty on it.
    design, response = design - centre, response - level
    # One factorization serves all images: they differ in the right side only.
    effects = solved(design.T @ design, design.T @ response, ridge, counted="masks than components")
    # Centred where the fit was: the means of the held-out masks are no part of the prediction.
    predicted = (drawn[:held_out].double() - centre) @ effects + level
    return Attribution(effects, _correlation(predicted, outputs[:held_out]))


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the mean over columns of the correlation of two matrices' columns."""
    one, other = one - one.mean(0), other - other.mean(0)
    lengths = one.norm(dim=0) * other.norm(dim=0)
    # An image that no ablation touches has no correlation; its rounding must not count as one.
    varies = lengths > 1e-12 * float(lengths.max())
    return float(((one * other).sum(0)[varies] / lengths[varies]).mean())


def margins_of(
    logits: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"]
) -> Float[Tensor, " images"]:
    """Return how far each image's logit of its own class is above the best other one."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own - others.amax(1)


def separation(
    effects: Float64[Tensor, "components images"], of_target: Bool[Tensor, " images"]
) -> Float64[Tensor, " components"]:
    """Return how much more a component adds to the target's margins than to others', as a t-score.

    The difference of the means in units of its standard error (the paper's COAR-Edit; where there
    is no difference it is 0).

    Raises:
        InputError: if there are fewer than two images of either kind.
    """
    kinds = effects[:, of_target], effects[:, ~of_target]
    if min(kind.shape[1] for kind in kinds) < 2:
        raise InputError(
            f"{kinds[0].shape[1]} images are of the target and {kinds[1].shape[1]} are not; both "
            "need two at least"
        )
    variances = [kind.var(1, correction=0) / kind.shape[1] for kind in kinds]
    difference = kinds[0].mean(1) - kinds[1].mean(1)
    error = (variances[0] + variances[1]).sqrt()
    # A dead component has 0 / 0; it must neither come first nor spoil the order as NaN.
    return torch.where(difference == 0, 0.0, difference / error.clamp(min=1e-300))
