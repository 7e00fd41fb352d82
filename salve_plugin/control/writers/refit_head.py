"""The fine-tuned head: the classifier fitted again to recorded inputs, near the one it was."""

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.writers.evidence import Recorded, head_inputs
from salve_plugin.control.writers.layer import Layer, head_of
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch

STEPS = 1000
CONVERGED = 1e-5
"""The largest gradient left, in units of the loss and of the features' size."""


def refit_head(
    hooked: HookedModel,
    acts: Recorded,
    *,
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

    Args:
        hooked: the attached model; nothing is applied.
        acts: recorded head inputs with labels, all in memory.
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
        InputError: if there are no images, or a weight, group or `l2` is out of range.
        UnsupportedModelError: if the classifier is not one layer.
    """
    layer = head_of(hooked)
    x, labels = head_inputs(layer, acts, on_base_mismatch)
    if not 0 < l2 < 1e12:  # also refuses NaN; without a pull separable images have no optimum
        raise InputError(f"l2 {l2!r} is to be a number above 0, e.g. the default 0.001")
    shares = _shares(weights, groups, len(x))
    change, shift = _fitted(layer, x, labels, shares, l2)
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
    return layer.updated(update, note)


def _fitted(
    layer: Layer, x: Tensor, labels: Tensor, shares: Tensor, l2: float
) -> tuple[Tensor, Tensor | None]:
    """Return the changes of weight and bias at the optimum."""
    from scipy.optimize import minimize

    base, scale = layer.output(x), (shares @ x.square().mean(1)).sqrt().clamp(min=1e-300)
    # In units of the features' size, so that neither the pull nor the solver depends on it.
    inputs, has_bias = x / scale, layer.bias is not None
    if has_bias:
        inputs = torch.cat([inputs, inputs.new_ones(len(x), 1)], 1)
    shape = (base.shape[1], inputs.shape[1])
    # Unknown is the change, not the weight: the pull is towards zero, and zero is the start.
    targets = functional.one_hot(labels, shape[0]).double()

    def loss(flat: Any) -> tuple[float, Any]:
        change = torch.from_numpy(flat).view(shape)
        logs = (base + inputs @ change.T).log_softmax(1)
        value = -(shares * (targets * logs).sum(1)).sum() + l2 / 2 * change.square().sum()
        gradient = ((logs.exp() - targets) * shares[:, None]).T @ inputs + l2 * change
        return float(value), gradient.flatten().numpy()

    result = minimize(
        loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B",
        options={"maxiter": STEPS, "maxfun": 4 * STEPS, "ftol": 1e-14, "gtol": 1e-8, "maxcor": 30},
    )  # fmt: skip
    change = torch.from_numpy(result.x).view(shape)
    steepest = float(np.abs(result.jac).max())
    if not steepest <= CONVERGED:  # the solver's own verdict is about its last step alone
        warnings.warn(
            f"the refitted classifier is not at its optimum: after {result.nit} steps a gradient "
            f"of {steepest:.2g} is left; raise l2, which is {l2:g}",
            stacklevel=3,
        )
    if not has_bias:
        return change / scale, None
    return change[:, :-1] / scale, change[:, -1].clone()


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
