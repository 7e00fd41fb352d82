r"""The `scale` operator: SALVE's edit as pure tensor functions.

Shapes are named once, here: `classes` and `width` are the outputs and inputs of a linear layer that
reads the site. A `direction` $c$ is one atom of the dictionary; atoms have unit norm, since
otherwise the strength $\alpha$ has no unit. Factors are computed in float64.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.errors import InputError

Mode = Literal["suppress", "enhance"]

UNIT_NORM_TOLERANCE = 1e-4
"""How far from 1 a direction's norm may be: float32 atoms are within 1e-6."""


def check_direction(direction: Tensor) -> None:
    """Refuse a direction that is not a finite vector of unit norm.

    Raises:
        InputError: with the norm found and how to repair it.
    """
    if direction.ndim != 1 or not direction.is_floating_point():
        raise InputError(
            f"a direction is a floating-point vector, one entry a feature; got {direction.dtype} "
            f"of shape {tuple(direction.shape)}"
        )
    norm = float(direction.detach().double().norm())
    if not abs(norm - 1) <= UNIT_NORM_TOLERANCE:  # also catches NaN
        raise InputError(
            f"the direction has norm {norm:.6g}, but a strength has a unit only for atoms of norm "
            "1: divide the direction by its norm"
        )


def check_strength(strength: float) -> None:
    """Refuse a strength that is not a finite number >= 0.

    Raises:
        InputError: with the strength found.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise InputError(
            f"strength {strength} is not a finite number >= 0; the mode ('suppress' or 'enhance') "
            "gives the sign"
        )


def multiplier(
    direction: Tensor, strength: float, mode: Mode = "suppress"
) -> Float64[Tensor, " width"]:
    r"""Return the factor of each column: $m_j = \max(0,\ 1 \mp \alpha\,|c_j|)$ (SALVE, Eq. 1).

    Suppression takes the minus sign, enhancement the plus. Strength 0 gives ones exactly.

    >>> multiplier(torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64), 1.25)
    tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64)

    Args:
        direction: unit-norm atom $c$, (width,).
        strength: $\alpha \ge 0$.
        mode: "suppress" or "enhance".

    Raises:
        InputError: if the direction is no unit vector or the strength is negative or not finite.
    """
    check_direction(direction)
    check_strength(strength)
    if mode not in ("suppress", "enhance"):
        raise InputError(f"unknown mode {mode!r}: choose 'suppress' or 'enhance'")
    reach = direction.detach().double().abs()
    sign = -1.0 if mode == "suppress" else 1.0
    return (1 + sign * strength * reach).clamp(min=0)


def product(multipliers: Sequence[Tensor]) -> Float64[Tensor, " width"]:
    """Return the multiplier of several edits at once, multiplied in the order given.

    Rounding makes float multiplication depend on the order, so a caller who wants a result that
    does not depend on it gives the multipliers in an order of their own (edits: by digest).
    """
    total = multipliers[0]
    for factor in multipliers[1:]:
        total = total * factor
    return total


def cast_factors(factors: Tensor, rows: Tensor) -> Tensor:
    """Return the factors as they multiply `rows`: float64 for float64 rows, float32 for others."""
    working = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return factors.to(working).to(rows.device)


def scaled(rows: Tensor, factors: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the rows with their columns scaled, in the rows' dtype.

    The factors are cast once (`cast_factors`); one product follows, and for 16-bit rows one more
    cast. So the result is the same on every machine.

    Args:
        rows: (rows, width), any floating dtype.
        factors: (width,).
        out: where to write the result, of the rows' shape and dtype.
    """
    factors = cast_factors(factors, rows)
    if rows.dtype == factors.dtype:
        return torch.mul(rows, factors, out=out)
    result = (rows.to(factors.dtype) * factors).to(rows.dtype)
    return result if out is None else out.copy_(result)


def scaled_weight(
    weight: Tensor,
    direction: Tensor,
    strength: float,
    *,
    mode: Mode = "suppress",
    rows: Iterable[int] | None = None,
) -> Tensor:
    r"""Return the weight $W' = W\,\mathrm{diag}(m)$, on all rows or only on the named ones.

    This is exactly what an applied `Edit` writes into a model. The input is left unchanged.

    >>> scaled_weight(torch.ones(2, 2), torch.tensor([0.6, 0.8]), 1.0, rows=[1])
    tensor([[1.0000, 1.0000],
            [0.4000, 0.2000]])

    Args:
        weight: (classes, width), floating.
        direction: unit-norm atom $c$, (width,).
        strength: $\alpha \ge 0$.
        mode: "suppress" or "enhance".
        rows: outputs whose weights change; None means all of them (the paper's edit).

    Raises:
        InputError: if the shapes do not fit, or as for `multiplier`.
    """
    factors = multiplier(direction, strength, mode).to(weight.device)
    if weight.ndim != 2 or weight.shape[1] != len(factors):
        raise InputError(
            f"a weight of shape {tuple(weight.shape)} does not fit a direction of "
            f"{len(factors)} features: expected (classes, {len(factors)})"
        )
    if rows is None:
        return scaled(weight, factors)
    result, index = weight.clone(), torch.tensor(list(rows), device=weight.device)
    result[index] = scaled(weight[index], factors)
    return result
