"""Logistic regression of a label that is there or not, to the optimum, in float64."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

STEPS = 1000


def logistic(
    x: Float64[Tensor, "rows width"],
    has: Bool[Tensor, " rows"],
    strictness: float,
    start: Float64[Tensor, " parameters"] | None = None,
) -> Float64[Tensor, " parameters"]:
    r"""Return weights (width,) and, last, the bias of the L2-regularized logistic regression.

    Minimizes $C \sum_i \log(1 + e^{-s_i(w^Tx_i + b)}) + \frac12\|w\|^2$ with $s_i = \pm 1$ and the
    bias free, by L-BFGS.

    Args:
        x: one row an example, best standardized: the pull treats all features alike.
        has: the labels.
        strictness: C, how much the examples count against the pull towards zero.
        start: where to begin; by default at zero.
    """
    from scipy.optimize import minimize

    signs = torch.where(has, 1.0, -1.0).double()
    width = x.shape[1]

    def loss(flat: Any) -> tuple[float, Any]:
        parameters = torch.from_numpy(flat)
        weight, bias = parameters[:width], parameters[width]
        margins = signs * (x @ weight + bias)
        # softplus(-m), which neither overflows for large m nor loses small values.
        value = strictness * torch.nn.functional.softplus(-margins).sum() + weight @ weight / 2
        pushes = -strictness * signs * torch.sigmoid(-margins)
        gradient = torch.cat([x.T @ pushes + weight, pushes.sum()[None]])
        # Per example, or the solver's stopping rules would mean another accuracy for each C.
        scale = 1 / (strictness * len(x))
        return float(value) * scale, gradient.numpy() * scale

    begin = np.zeros(width + 1) if start is None else start.numpy()
    result = minimize(
        loss, begin, jac=True, method="L-BFGS-B",
        options={"maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": 1e-14, "gtol": 1e-9},
    )  # fmt: skip
    return torch.from_numpy(result.x)
