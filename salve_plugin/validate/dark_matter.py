"""What a dictionary misses: the part of its error that a linear map predicts, and the rest."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.reconstruction import check_finite, fvu

ROWS_PER_FEATURE = 20
"""With fewer rows than this for each feature, the fit is a ridge regression."""

RIDGE, NEARLY_NONE = 1e-3, 1e-9
"""Penalties relative to the mean variance of a feature: with few rows, and otherwise, where it only
decides among directions without variance."""

_CHUNK = 8192
_NEGLIGIBLE = 1e-10
"""Share of the variance below which an error is rounding, and predicting it means nothing."""


@dataclass(frozen=True)
class DarkMatter:
    """The split of a reconstruction error.

    Attributes:
        error_r2: share of the error's variance on held-out rows that a linear map of the
            activation predicts; it can be negative. NaN if there is no error.
        norm_r2: the same of the error's length.
        fvu: share of the activations' variance that the error is.
        fvu_nonlinear: what of it remains after adding the predicted error to the reconstruction.
    """

    error_r2: float
    norm_r2: float
    fvu: float
    fvu_nonlinear: float


def dark_matter(
    fit_x: Float[Tensor, "fit width"],
    fit_error: Float[Tensor, "fit_errors fit_width"],
    x: Float[Tensor, "rows x_width"],
    error: Float[Tensor, "errors error_width"],
) -> DarkMatter:
    """Split the error ε = x − x̂ into what is linear in x and what is not.

    A linear map with offset from x to ε is fitted on some rows and judged on others:
    R² = 1 − Σ‖ε − ε_lin‖² / Σ‖ε − mean(ε)‖², and FVU_nonlinear = FVU(x, x̂ + ε_lin); likewise from
    x to ‖ε‖ (Engels et al. 2024, "Decomposing the Dark Matter of Sparse Autoencoders"). The error
    of a dictionary with a linear encoder is linear in x altogether, so its R² is 1.

    Args:
        fit_x: rows to fit on; 20 for each feature or more, else a small ridge penalty is added.
        fit_error: their errors.
        x: rows to judge on.
        error: their errors.

    Raises:
        InputError: if there are fewer than two rows of either kind, shapes do not fit, a value is
            NaN or infinite, or `x` has no variance.
    """
    if fit_x.shape != fit_error.shape or x.shape != error.shape or min(len(x), len(fit_x)) < 2:
        raise InputError(
            f"rows {tuple(fit_x.shape)} with errors {tuple(fit_error.shape)} to fit on and rows "
            f"{tuple(x.shape)} with errors {tuple(error.shape)} to judge on: shapes must agree, "
            "and there must be at least two rows of each"
        )
    check_finite(fit_x, "activations")
    check_finite(fit_error, "reconstruction errors")
    total = fvu(x, error)
    norms = torch.linalg.vector_norm(fit_error.double(), dim=1, keepdim=True)
    # The length is one more target: it shares the error's factorization.
    weight, offset = linear_fit(fit_x, torch.cat([fit_error.double(), norms], dim=1))
    predicted = x.double() @ weight + offset
    truth = error.double()
    lengths = torch.linalg.vector_norm(truth, dim=1, keepdim=True)
    if total < _NEGLIGIBLE:
        return DarkMatter(math.nan, math.nan, total, total)
    return DarkMatter(
        error_r2=_r2(truth, predicted[:, :-1]),
        norm_r2=_r2(lengths, predicted[:, -1:]),
        fvu=total,
        fvu_nonlinear=fvu(x, truth - predicted[:, :-1]),
    )


def linear_fit(
    x: Float[Tensor, "rows width"], y: Float[Tensor, "rows targets"]
) -> tuple[Float64[Tensor, "width targets"], Float64[Tensor, " targets"]]:
    """Return the weight and offset that minimize Σ‖y − x W − b‖², with a penalty on ‖W‖².

    The penalty is 1e-9 of a feature's mean variance times ‖W‖² for each row, 1e-3 if there are
    fewer than 20 rows for each feature. Accumulated in float64.
    """
    mean_x, mean_y = x.double().mean(0), y.double().mean(0)
    width = x.shape[1]
    square = torch.zeros(width, width, dtype=torch.float64, device=x.device)
    cross = torch.zeros(width, y.shape[1], dtype=torch.float64, device=x.device)
    for rows, targets in zip(torch.split(x, _CHUNK), torch.split(y, _CHUNK), strict=True):
        centred = rows.double() - mean_x
        square += centred.T @ centred
        cross += centred.T @ (targets.double() - mean_y)
    # Unpenalized, a map from few rows would follow their noise and fail on those it is judged on.
    few = len(x) < ROWS_PER_FEATURE * width
    penalty = (RIDGE if few else NEARLY_NONE) * max(float(square.trace()) / width, 1e-300)
    weight = torch.linalg.solve(
        square + penalty * torch.eye(width, dtype=torch.float64, device=x.device), cross
    )
    # Fitted on centred rows, the offset bears no penalty.
    return weight, mean_y - mean_x @ weight


def _r2(truth: Tensor, predicted: Tensor) -> float:
    """Return 1 − Σ‖y − ŷ‖² / Σ‖y − mean(y)‖²; NaN if y is constant."""
    spread = float((truth - truth.mean(0)).square().sum())
    # Relative to the size of y, since float64 leaves that much of a constant.
    if spread <= 1e-20 * float(truth.square().sum()):
        return math.nan
    return 1 - float((truth - predicted).square().sum()) / spread
