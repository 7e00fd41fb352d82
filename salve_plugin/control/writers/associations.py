"""Keys and values written into a linear layer with the least change for everything else it reads.

The closed form behind ROME (Meng et al. 2022, arXiv 2202.05262, Eq. 2) and MEMIT (Meng et al. 2023,
arXiv 2210.07229, Eq. 14).
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.writers.evidence import solved
from salve_plugin.control.writers.layer import Layer
from salve_plugin.errors import InputError


def written_update(
    keys: Float64[Tensor, "keys inputs"],
    residuals: Float64[Tensor, "keys outputs"],
    moment: Float64[Tensor, "inputs inputs"],
    *,
    preservation: float,
    ridge: float,
) -> LowRankUpdate:
    r"""Return the update that adds the residuals to what a layer makes of the keys.

    $\Delta = R^T K (\lambda C + K^T K)^{-1}$ with the keys as rows of K: it minimizes
    $\sum_i \|\Delta k_i - r_i\|^2 + \lambda\, tr(\Delta C \Delta^T)$, and with $\lambda = 0$ the
    trace alone among all that map every key exactly.

    Args:
        keys: K.
        residuals: R, what the output of each key is to change by.
        moment: C, the uncentred second moment of what the layer reads.
        preservation: $\lambda$ in units of the mean of $k_i^T C^{-1} k_i$.
        ridge: see `salve_plugin.control.writers.evidence.solved`.

    Raises:
        InputError: if $\lambda$ is 0 and the keys are linearly dependent, or C has no inverse.
    """
    if not 0 <= preservation <= 1e12:  # also refuses NaN
        raise InputError(f"preservation {preservation!r} is to be a number from 0")
    # (λC + KᵀK)⁻¹Kᵀ = C⁻¹Kᵀ (λI + KC⁻¹Kᵀ)⁻¹: as many equations as keys instead of inputs, and
    # λ = 0 is no special case.
    whitened = solved(moment, keys.T, ridge)
    overlaps = keys @ whitened
    # Over the recorded inputs themselves kᵀC⁻¹k is the width in the mean: an absolute λ would write
    # more the wider the layer is. In units of the keys' own mean it does not.
    scale = overlaps.diagonal().mean()
    if not float(overlaps.diagonal().min()) > 0:
        raise InputError("a key is zero, which no weight maps to anything else; give another key")
    system = overlaps / scale + preservation * torch.eye(len(keys)).double()
    # Dependent keys leave rounding for a pivot: the solution would be huge instead of missing.
    if not float(torch.linalg.cond(system)) <= 1e12:
        raise InputError(
            f"the {len(keys)} keys are linearly dependent, so that they cannot all have values of "
            "their own; leave out one of those that are alike, or raise preservation"
        )
    # The change of each key's output is shared out among all keys, since they overlap.
    # Both sides are divided by the scale, which cancels.
    left = torch.linalg.solve(system, residuals / scale).T
    return LowRankUpdate(left, whitened)


def vectors(values: object, name: str, width: int, *, count: int | None = None) -> Tensor:
    """Return keys or values as float64 rows (count, width); a single vector is one row.

    Raises:
        InputError: if they are something else, or not finite.
    """
    if isinstance(values, Tensor) and values.is_floating_point():
        rows = values.detach().to("cpu", torch.float64)
        rows = rows[None] if rows.ndim == 1 else rows
        fits = (
            rows.ndim == 2 and rows.shape[1] == width and len(rows) and count in (None, len(rows))
        )
        if fits and bool(rows.isfinite().all()):
            return rows
    shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    raise InputError(
        f"{name} {shape} is to be a finite floating tensor ({'n' if count is None else count}, "
        f"{width}), or ({width},) for a single one"
    )


def check_new(layer: Layer, residuals: Float64[Tensor, "keys outputs"]) -> None:
    """Raise InputError if the values are what the layer gives already."""
    if not bool(residuals.any()):
        raise InputError(
            f"'{layer.path}' gives these values for these keys already; there is nothing to write"
        )
