"""The fine-tuned head: the classifier fitted again to recorded inputs, near the one it was."""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.operators.base import real
from salve_plugin.control.writers.evidence import Recorded, head_inputs
from salve_plugin.control.writers.head_fit import STEPS, fitted_head, flip_shares
from salve_plugin.control.writers.layer import head_of
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch

CONVERGED = 1e-5
"""The largest gradient left, in units of the loss and of the features' size."""


def refit_head(
    hooked: HookedModel,
    acts: Recorded,
    *,
    without: Recorded | None = None,
    agreement: float = 10.0,
    weights: Float[Tensor, " images"] | None = None,
    groups: Int[Tensor, " images"] | None = None,
    l2: float = 1e-3,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Edit:
    r"""Return the edit that fits the whole classifier again by multinomial logistic regression.

    It minimizes $\sum_i w_i\, CE(Wx_i + b, y_i) / \sum_i w_i + \frac{l2}{2} (s^2 \|W - W_0\|^2 +
    \|b - b_0\|^2)$ with $s^2$ the weighted mean square of a feature, from the pristine $W_0, b_0$,
    by L-BFGS in float64. With balanced groups that is last-layer retraining (Kirichenko et al.
    2023, arXiv 2204.02937), the yardstick of edits against a shortcut. It needs labels, and it
    moves every class: one that has no images loses weight to those that have.

    Where the same images are there without a concept, both count, and the two of a pair are to be
    labelled alike: `agreement` times $KL(p \| q) + KL(q \| p)$ of their probabilities is added,
    a class counting by its share of the pairs that are labelled differently now. Asking two forms
    of an input for the same output is counterfactual logit pairing (Garg et al. 2019, arXiv
    1809.10610); in the symmetrized KL, R-Drop (Liang et al. 2021, arXiv 2106.14448).

    Args:
        hooked: the attached model; nothing is applied.
        acts: recorded head inputs with labels, all in memory.
        without: the same images without a concept, in the same order.
        agreement: weight of the pairs' agreement, where `without` is given.
        weights: $w_i \ge 0$ of each image; None weighs all alike.
        groups: of each image, e.g. 2 * label + attribute: every group then weighs the same in all.
        l2: pull towards the pristine classifier.
        on_base_mismatch: "warn" takes a recording of another network.

    Warns:
        UserWarning: if the optimum was not reached in 1000 steps.

    Returns:
        The edit, a low-rank update of rank min(classes, width) or less.

    Raises:
        BaseMismatchError: if the recording is of another network than the model as it is.
        InputError: if there are no images, a weight, group, `l2` or `agreement` is out of range, or
            `without` is not of the same images.
        UnsupportedModelError: if the classifier is not one layer.
    """
    layer = head_of(hooked)
    x, labels = head_inputs(layer, acts, on_base_mismatch)
    # This also refuses NaN; without a pull separable images have no optimum.
    if not 0 < real(l2, "l2") < 1e12:
        raise InputError(f"l2 {l2!r} is to be a number above 0, e.g. the default 0.001")
    shares, pairs = _shares(weights, groups, len(x)), None
    base = layer.output(x)
    if without is not None:
        if not 0 <= agreement < 1e12:
            raise InputError(f"agreement {agreement!r} is to be a number from 0, e.g. 10")
        unmarked, same = head_inputs(layer, without, on_base_mismatch)
        if not torch.equal(labels, same):
            raise InputError(
                f"without holds {len(same)} images whose labels are not those of the {len(labels)} "
                "of acts; record the same images with and without the concept, in the same order"
            )
        x, base = torch.cat([x, unmarked]), torch.cat([base, layer.output(unmarked)])
        pairs = agreement * flip_shares(base, labels)
        # Each form has half of its image's share: the shares still sum to 1, and l2 weighs as much
        # against them as without pairs.
        labels, shares = labels.repeat(2), shares.repeat(2) / 2
    has_bias = layer.bias is not None
    fit = fitted_head(
        x, base, labels, shares, l2, agreement=pairs, has_bias=has_bias, steps=STEPS
    )  # fmt: skip
    if not fit.steepest <= CONVERGED:  # the solver's own verdict is about its last step alone
        warnings.warn(
            f"the refitted classifier is not at its optimum: after {fit.steps} steps a gradient "
            f"of {fit.steepest:.2g} is left; raise l2, which is {l2:g}",
            stacklevel=2,
        )
    change, shift = fit.weight, fit.bias
    classes, width = change.shape
    # Written as change times identity, on the shorter side: that is as exact as the change itself.
    if classes <= width:
        update = LowRankUpdate(torch.eye(classes).double(), change.T, shift)
    else:
        update = LowRankUpdate(change, torch.eye(width).double(), shift)
    balance = (
        "of balanced groups" if groups is not None else "weighted" if weights is not None else ""
    )
    note = f"head refitted on {len(x)} images {balance}".rstrip() + f", l2 {l2:g}"
    if without is not None:
        note += f", agreement of pairs {agreement:g}"
    return layer.updated(update, note)


def _shares(weights: Tensor | None, groups: Tensor | None, images: int) -> Tensor:
    """Return what share of the loss each image has; they sum to 1."""
    given = weights if groups is None else groups
    if weights is not None and groups is not None:
        raise InputError("give weights or groups, not both: groups are weights by themselves")
    if given is None:
        return torch.full((images,), 1 / images, dtype=torch.float64)
    if not isinstance(given, Tensor) or given.shape != (images,):
        shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"weights or groups {shape} are to be one number for each of {images}")
    if groups is not None:
        if groups.is_floating_point():
            raise InputError(f"groups are {groups.dtype}; give each image the index of its group")
        _, member, counts = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)
        member, counts = torch.as_tensor(member), torch.as_tensor(counts)
        return 1 / (len(counts) * counts[member].double())
    given = given.detach().cpu().double()
    if not bool((given.isfinite() & (given >= 0)).all()) or not bool(given.any()):
        raise InputError("weights are to be finite numbers from 0, at least one above it")
    return given / given.sum()
