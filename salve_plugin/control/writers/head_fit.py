"""Fitting a classifier again near the one it was: on labels, and on pairs that are to agree."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn import functional

STEPS = 1000
"""Of the solver, for a fit that is to be an optimum."""


@dataclass(frozen=True, eq=False)
class HeadFit:
    """What is to be added to a classifier.

    Attributes:
        weight: (classes, width).
        bias: (classes,); None without one.
        steepest: the largest gradient left, in units of the loss and of the features' size.
        steps: that the solver took.
    """

    weight: Float64[Tensor, "classes width"]
    bias: Float64[Tensor, " classes"] | None
    steepest: float
    steps: int


def fitted_head(
    x: Float64[Tensor, "images width"],
    base: Float64[Tensor, "images classes"],
    labels: Int64[Tensor, " images"],
    shares: Float64[Tensor, " images"],
    l2: float,
    *,
    agreement: Float64[Tensor, " pairs"] | None = None,
    has_bias: bool = True,
    steps: int = STEPS,
    tolerance: float = 1e-14,
) -> HeadFit:
    r"""Return the change of a classifier with the least weighted loss.

    The loss is $\sum_i w_i\, CE(z_i, y_i) + \sum_j a_j\, (KL(p_j \| q_j) + KL(q_j \| p_j)) +
    \frac{l2}{2} (s^2 \|\Delta W\|^2 + \|\Delta b\|^2)$ with $z = W x + b$, p and q the
    probabilities of the two images of a pair and $s^2$ the weighted mean square of a feature.
    Without the second term it is convex. L-BFGS from no change, in float64.

    Args:
        x: inputs.
        base: their logits before.
        labels: their classes.
        shares: w, which sum to 1.
        l2: pull towards the classifier as it was.
        agreement: a, for image j and image j + images/2 of each pair; None without pairs.
        has_bias: whether there is a bias to change.
        steps: at most so many.
        tolerance: share of the loss by which a step has to lower it, for another one.
    """
    from scipy.optimize import minimize

    width, scale = x.shape[1], (shares @ x.square().mean(1)).sqrt().clamp(min=1e-300)
    # In units of the features' size, so that neither the pull nor the solver depends on it.
    inputs = x / scale
    if has_bias:
        inputs = torch.cat([inputs, inputs.new_ones(len(x), 1)], 1)
    # The pull leaves nothing outside the span of the inputs: with few images of many features, the
    # unknowns are coordinates in it.
    basis = None
    if len(inputs) < inputs.shape[1]:
        basis, coordinates = torch.linalg.qr(inputs.T)
        inputs = coordinates.T.contiguous()
    # Unknown is the change, not the weight: the pull is towards zero, and zero is the start.
    shape = (base.shape[1], inputs.shape[1])
    targets = functional.one_hot(labels, shape[0]).double()
    half = len(x) // 2

    def loss(flat: Any) -> tuple[float, Any]:
        change = torch.from_numpy(flat).view(shape)
        logs = (base + inputs @ change.T).log_softmax(1)
        value = -(shares * (targets * logs).sum(1)).sum() + l2 / 2 * change.square().sum()
        slopes = (logs.exp() - targets) * shares[:, None]
        if agreement is not None:
            apart, first, second = _disagreement(logs[:half], logs[half:])
            value = value + agreement @ apart
            slopes += agreement.repeat(2)[:, None] * torch.cat([first, second])
        gradient = slopes.T @ inputs + l2 * change
        return float(value), gradient.flatten().numpy()

    result = minimize(
        loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B",
        options={
            "maxiter": steps, "maxfun": 4 * steps, "ftol": tolerance, "gtol": 1e-8, "maxcor": 30,
        },
    )  # fmt: skip
    change = torch.from_numpy(result.x).view(shape)
    change = change if basis is None else change @ basis.T
    steepest = float(np.abs(result.jac).max())
    bias = change[:, width].clone() if has_bias else None
    return HeadFit(change[:, :width] / scale, bias, steepest, int(result.nit))


def flip_shares(
    base: Float64[Tensor, "images classes"], labels: Int64[Tensor, " pairs"]
) -> Float64[Tensor, " pairs"]:
    """Return how much each pair's agreement counts; they sum to 1.

    A class counts as much as its pairs are labelled differently before: where no decision hangs on
    the concept, agreement would cost accuracy for nothing. Where none does at all, all count alike.

    Args:
        base: logits of the pairs' first images and then of their second.
        labels: class of each pair.
    """
    first, second = base.argmax(1).chunk(2)
    count = torch.bincount(labels).double()
    flips = torch.bincount(labels, (first != second).double(), minlength=len(count))
    if not bool(flips.any()):
        flips = count
    # The pairs of a class share its rate of flips, so that its weight does not grow with the number
    # of its images. Classes without pairs are 0 / 0, which neither index reaches.
    return (flips / count.square())[labels] / (flips / count)[count > 0].sum()


def _disagreement(
    first: Float64[Tensor, "pairs classes"], second: Float64[Tensor, "pairs classes"]
) -> tuple[
    Float64[Tensor, " pairs"], Float64[Tensor, "pairs classes"], Float64[Tensor, "pairs classes"]
]:
    """Return the symmetrized KL of pairs of log probabilities, and its slopes in their logits."""
    p, q, ratio = first.exp(), second.exp(), first - second
    forth, back = (p * ratio).sum(1), -(q * ratio).sum(1)
    # d KL(p‖q) is p (ln p/q − KL) in the logits of p and q − p in those of q; and turned about.
    slope_first = p * (ratio - forth[:, None]) + p - q
    slope_second = q * (-ratio - back[:, None]) + q - p
    return forth + back, slope_first, slope_second
