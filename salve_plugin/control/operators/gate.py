r"""The gate: SALVE's edit, features scaled by how much some latents reach them.

Shapes are named once, here: `classes` and `width` are the outputs and inputs of a linear layer that
reads the site. A `direction` $c$ is one atom of the dictionary; atoms have unit norm, since
otherwise the strength $\alpha$ has no unit. Factors are computed in float64.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.operators.base import (
    Fold,
    Operator,
    Part,
    check_fields,
    number,
    owned,
    real,
)  # fmt: skip
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line

Mode = Literal["suppress", "enhance"]

UNIT_NORM_TOLERANCE = 1e-4
"""How far from 1 a direction's norm may be: float32 atoms are within 1e-6."""


@dataclass(frozen=True, eq=False)
class Gate(Operator):
    r"""x' = m x with $m_j = \max(0,\ 1 \mp \alpha\,\mathrm{reach}_j)$ (SALVE, Eq. 1).

    The reach of one latent is $|c_j|$; of several it is $\sqrt{\sum_l c_{lj}^2}$, so that features
    stay piecewise linear in the strength and critical strengths stay exact.

    Attributes:
        directions: the latents' atoms, (latents, width), each of unit norm.
        strength: $\alpha \ge 0$.
        mode: "suppress" (minus) or "enhance" (plus).
    """

    __repr__ = one_line

    directions: Tensor
    strength: float
    mode: Mode = "suppress"

    form = "gate"
    formula = "W' = W diag(m), m = max(0, 1 ∓ α·reach)"

    def __post_init__(self) -> None:
        """Check every field; take a private copy of the directions.

        Raises:
            InputError: naming the field that cannot be used.
        """
        check_mode(self.mode)
        object.__setattr__(self, "strength", check_strength(self.strength) + 0.0)  # no -0
        object.__setattr__(self, "directions", owned(self.directions, "directions", 2))
        if not len(self.directions):
            raise InputError("directions are none; expected one row a latent, (latents, width)")
        for direction in self.directions:
            check_direction(direction)

    @cached_property
    def reach(self) -> Float64[Tensor, " width"]:
        """How much the latents reach each feature: |c|, or the root of the sum of squares."""
        # The plain |c| for one latent, not the root of its square: those differ in the last bit,
        # and the paper's factors are reproduced exactly.
        atoms = self.directions.double()
        return atoms[0].abs() if len(atoms) == 1 else atoms.square().sum(0).sqrt()

    @cached_property
    def factors(self) -> Float64[Tensor, " width"]:
        """The factor m of each feature."""
        return _multiplier(self.reach, self.strength, self.mode)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The directions."""
        return {"directions": self.directions}

    def fields(self) -> dict[str, Any]:
        """Return mode and strength."""
        return {"mode": self.mode, "strength": self.strength}

    @classmethod
    def rebuilt(cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Gate":
        """Return the gate of these fields and tensors; see `Operator.rebuilt`."""
        check_fields(cls.form, fields, {"mode", "strength"}, tensors, {"directions"})
        check_mode(fields["mode"])
        return cls(tensors["directions"], number(cls.form, fields, "strength"), fields["mode"])

    def check(self, width: int, rows: int | None, outputs: tuple[int, ...]) -> None:
        """Raise unless the directions are as wide as the site; see `Operator.check`."""
        if self.directions.shape[1] != width:
            raise InputError(
                f"directions of {self.directions.shape[1]} features do not fit a site of {width}"
            )

    @property
    def moves_origin(self) -> bool:
        """False: zero stays zero."""
        return False

    @property
    def at_zero(self) -> "Gate":
        """The gate of strength 0."""
        return replace(self, strength=0.0)

    def activation(self, x: Tensor, axis: int) -> Tensor:
        """Return the gated activation; see `Operator.activation`."""
        shape = [-1 if at == axis % x.ndim else 1 for at in range(x.ndim)]
        return x * self.factors.to(x.device, x.dtype).reshape(shape)

    def reader_weight(self, weight: Tensor) -> Part:
        """Return the scaled columns; see `Operator.reader_weight`."""
        # A reader's features are its columns: one factor each, for all rows and kernel positions.
        factors = self.factors.reshape(1, -1, *[1] * (weight.ndim - 2))
        return Part(factors, None, None, tuple(weight.shape[1:]))

    def reader_bias(self, weight: Tensor) -> Part:
        """Return that biases stay; see `Operator.reader_bias`."""
        return Part(None, None, None, ())

    def writer_weight(self, weight: Tensor, fold: Fold) -> Part:
        """Return the scaled rows; see `Operator.writer_weight`."""
        factors = self.factors.reshape(-1, *[1] * (weight.ndim - 1))
        return Part(factors, None, None, tuple(weight.shape[1:]))

    def writer_bias(self, bias: Tensor, fold: Fold) -> Part:
        """Return the scaled bias; see `Operator.writer_bias`.

        Raises:
            InputError: if something is added behind the weight: its product with several gates
                would not be the product of their products.
        """
        # With x = S y + t a gate would have to add (m - 1) t / S to the bias. What edits add is
        # summed, and (m₁ - 1) + (m₂ - 1) is not m₁m₂ - 1.
        if bool(fold.shift.any()):
            raise InputError(
                "a gate is not exact where a BatchNorm shifts what the layer writes; use a "
                "low-rank map there, or a site that linear layers read"
            )
        return Part(self.factors, None, None, ())


def check_mode(mode: object) -> None:
    """Raise InputError unless this is how a gate works."""
    if not isinstance(mode, str) or mode not in get_args(Mode):
        raise InputError(f"unknown mode {mode!r}: choose 'suppress' or 'enhance'")


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


def check_strength(strength: object) -> float:
    """Return a strength as a float; refuse one that is not a finite number >= 0.

    Raises:
        InputError: with the strength found.
    """
    value = real(strength, "strength")
    if not (math.isfinite(value) and value >= 0):
        raise InputError(
            f"strength {value} is not a finite number >= 0; the mode ('suppress' or 'enhance') "
            "gives the sign"
        )
    return value


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
    check_mode(mode)
    return _multiplier(direction.detach().double().abs(), check_strength(strength), mode)


def _multiplier(reach: Tensor, strength: float, mode: Mode) -> Tensor:
    sign = -1.0 if mode == "suppress" else 1.0
    return (1 + sign * strength * reach).clamp(min=0)


def product(multipliers: Sequence[Tensor]) -> Float64[Tensor, "..."]:
    """Return the multiplier of several edits at once, multiplied in the order given.

    Rounding makes float multiplication depend on the order, so a caller who wants a result that
    does not depend on it gives the multipliers in an order of their own (edits: by digest).
    """
    # One by one: a reduction over a stack could associate them differently on another machine.
    total = multipliers[0]
    for factor in multipliers[1:]:
        total = total * factor
    return total


def cast_factors(factors: Tensor, rows: Tensor) -> Tensor:
    """Return the factors as they multiply `rows`: float64 for float64 rows, float32 for others."""
    working = torch.float64 if rows.dtype == torch.float64 else torch.float32
    if factors.dtype == working and factors.device == rows.device:
        return factors
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
    return scaled_rows(weight, factors, rows)


def scaled_rows(weight: Tensor, factors: Tensor, rows: Iterable[int] | None) -> Tensor:
    """Return a new weight of which all rows, or only the named ones, have scaled columns."""
    if rows is None:
        return scaled(weight, factors)
    result, index = weight.clone(), torch.tensor(list(rows), device=weight.device)
    result[index] = scaled(weight[index], factors)
    return result
