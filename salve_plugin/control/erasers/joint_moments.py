"""Means and covariances of activations together with what is known of them, in one pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.operators.base import real
from salve_plugin.errors import InputError

Centre = Literal["origin", "mean"]
"""What a map leaves where it is: the mean, by an offset, or zero, without one."""


@dataclass(frozen=True, eq=False)
class JointMoments:
    """The first two moments of activations x and of values z that belong to them, in float64.

    Every closed-form eraser is a function of these alone, so a recording of any length is read once
    and never held. Covariances divide by the number of rows,
    or by the sum of their weights.

    Attributes:
        n_rows: number of rows; where they have weights, the number of equal ones that would be as
            sure, (Σ w)² / Σ w².
        x_mean: (width,).
        z_mean: (values,).
        xx: covariance of x, (width, width).
        xz: covariance of x with z, (width, values).
        zz: covariance of z, (values, values).
    """

    n_rows: float
    x_mean: Float64[Tensor, " width"]
    z_mean: Float64[Tensor, " values"]
    xx: Float64[Tensor, "width width"]
    xz: Float64[Tensor, "width values"]
    zz: Float64[Tensor, "values values"]

    @classmethod
    def of(
        cls, parts: Iterable[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]]
    ) -> "JointMoments":
        """Read the rows once.

        Args:
            parts: (x (rows, width), z (rows, values)) pieces of the data; a third tensor is the
                weight of each row (rows,), positive.

        Raises:
            InputError: if there are fewer than two rows, a value is not finite, or shapes differ.
        """
        sums: _Sums | None = None
        for x, z, *weights in parts:
            if x.ndim != 2 or z.ndim != 2 or len(x) != len(z) or not x.shape[1] * z.shape[1]:
                raise InputError(
                    f"activations {tuple(x.shape)} and values {tuple(z.shape)} do not fit: "
                    "expected (rows, width) and (rows, values)"
                )
            if not len(x):
                continue
            sums = sums or _Sums(x[0].double(), z[0].double())
            sums.add(x.double(), z.double(), weights[0].double() if weights else None)
        if sums is None or sums.count < 2:
            raise InputError(
                f"{0 if sums is None else sums.count} rows are too few for a covariance; record "
                "more images"
            )
        return sums.moments()

    @classmethod
    def of_blocks(
        cls, parts: Iterable[tuple[Tensor, Tensor, Tensor]], n_blocks: int
    ) -> "list[JointMoments]":
        """Return the moments of disjoint blocks of rows, which `merged` puts together again.

        A block may have a single row, whose covariances are zero.

        Args:
            parts: (x, z, block of each row (rows,)) pieces.
            n_blocks: how many.

        Raises:
            InputError: if a block has no row, a value is not finite, or the width changes.
        """
        sums: list[_Sums | None] = [None] * n_blocks
        for x, z, blocks in parts:
            for block in torch.unique(blocks).tolist():
                mine = blocks == block
                rows, values = x[mine].double(), z[mine].double()
                so_far = sums[block] or _Sums(rows[0], values[0])
                so_far.add(rows, values, None)
                sums[block] = so_far
        if None in sums:
            raise InputError(
                f"{[0 if one is None else one.count for one in sums]} rows in the blocks are too "
                "few for means; record more images"
            )
        return [one.moments() for one in sums if one is not None]

    @classmethod
    def merged(cls, parts: "Sequence[JointMoments]") -> "JointMoments":
        """Return the moments of all rows of several, of rows without weights.

        Raises:
            InputError: if there is none.
        """
        if not parts:
            raise InputError("there are no moments to merge")
        n = sum(part.n_rows for part in parts)
        shares = [part.n_rows / n for part in parts]
        # What the parts' means differ by lies between them, and is added to what lies within.
        x_mean = torch.stack([s * part.x_mean for s, part in zip(shares, parts, strict=True)]).sum(
            0
        )
        z_mean = torch.stack([s * part.z_mean for s, part in zip(shares, parts, strict=True)]).sum(
            0
        )
        xx, xz = torch.zeros_like(parts[0].xx), torch.zeros_like(parts[0].xz)
        zz = torch.zeros_like(parts[0].zz)
        for share, part in zip(shares, parts, strict=True):
            dx, dz = part.x_mean - x_mean, part.z_mean - z_mean
            xx += share * (part.xx + torch.outer(dx, dx))
            xz += share * (part.xz + torch.outer(dx, dz))
            zz += share * (part.zz + torch.outer(dz, dz))
        return cls(n, x_mean, z_mean, xx, xz, zz)

    def columns(self, kept: slice) -> "JointMoments":
        """Return the moments with some of the values z only."""
        return replace(
            self, z_mean=self.z_mean[kept], xz=self.xz[:, kept], zz=self.zz[kept, kept]
        )  # fmt: skip

    def covariance(self, shrinkage: float | None) -> Float64[Tensor, "width width"]:
        r"""Return $(1-\gamma)\,\Sigma + \gamma\,\frac{tr\,\Sigma}{D} I$.

        Args:
            shrinkage: $\gamma$ in [0, 1]; None estimates it (`oas_shrinkage`).

        Raises:
            InputError: if it is out of range.
        """
        if shrinkage is None:
            amount = oas_shrinkage(self.xx, self.n_rows)
        else:
            amount = real(shrinkage, "shrinkage")
        if not 0 <= amount <= 1:
            raise InputError(f"shrinkage {shrinkage} is not from 0 to 1; None estimates it")
        width = len(self.xx)
        ridge = amount * self.xx.diagonal().sum() / width
        return (1 - amount) * self.xx + ridge * torch.eye(width, dtype=torch.float64)

    def whitening(self, shrinkage: float | None) -> tuple[Tensor, Tensor]:
        """Return W = Σ^(-1/2) of the shrunk covariance and its pseudo-inverse.

        Directions of no variance are left out.

        Args:
            shrinkage: as for `covariance`.

        Raises:
            InputError: as `covariance`.
        """
        return self._estimated if shrinkage is None else _whitening(self.covariance(shrinkage))

    @cached_property
    def _estimated(self) -> tuple[Tensor, Tensor]:
        # Kept, since several erasers are made of the same moments, and this is most of their work.
        return _whitening(self.covariance(None))


def _whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return W = Σ^(-1/2) and its pseudo-inverse, without the directions of no variance."""
    spreads, axes = torch.linalg.eigh(covariance)
    # The size of the rounding error of eigenvalues that are zero, which may come out negative too:
    # what lies below is noise, and its inverse root would be the largest entry of all.
    cutoff = spreads[-1] * len(spreads) * torch.finfo(torch.float64).eps
    roots = torch.where(spreads > cutoff, spreads, 0.0).sqrt()
    inverse = torch.where(roots > 0, 1 / roots, 0.0)
    return (axes * inverse) @ axes.T, (axes * roots) @ axes.T


def oas_shrinkage(covariance: Float64[Tensor, "width width"], n_rows: float) -> float:
    """Return how far to shrink a covariance towards the identity's multiple of equal trace.

    The oracle approximating shrinkage of Chen, Wiesel, Eldar & Hero, "Shrinkage algorithms for MMSE
    covariance estimation" (2010), eq. 23 without its terms in 2 / width, as scikit-learn's OAS has
    it. With fewer rows than features the sample covariance has directions of no variance at all,
    along which an inverse would do anything.

    Args:
        covariance: divided by the number of rows.
        n_rows: how many.
    """
    squares = float(covariance.square().sum())  # tr Σ², as Σ is symmetric
    trace = float(covariance.diagonal().sum()) ** 2
    excess = (n_rows + 1) * (squares - trace / len(covariance))
    # By Cauchy and Schwarz the excess is never below zero but for rounding, and it is zero only
    # where the covariance is that multiple of the identity already.
    return 1.0 if excess <= 0 else min(1.0, (squares + trace) / excess)


class _Sums:
    """Sums over rows, of the distances from the first row: a mean far from zero costs no digits."""

    def __init__(self, x: Tensor, z: Tensor) -> None:
        self.count = 0
        self._x0, self._z0 = x, z
        width, values = len(x), len(z)
        self._weight, self._squares = 0.0, 0.0
        self._x, self._z = torch.zeros_like(x), torch.zeros_like(z)
        self._xx = x.new_zeros(width, width)
        self._xz = x.new_zeros(width, values)
        self._zz = x.new_zeros(values, values)

    def add(self, x: Tensor, z: Tensor, weights: Tensor | None) -> None:
        if not bool(x.isfinite().all()) or not bool(z.isfinite().all()):
            raise InputError("activations or values hold NaN or infinite entries; record again")
        if x.shape[1] != len(self._x0) or z.shape[1] != len(self._z0):
            raise InputError("activations or values change their width between batches")
        x, z = x - self._x0, z - self._z0
        weights = torch.ones(len(x), dtype=torch.float64) if weights is None else weights
        # Weights go to one side of the products: on both they would count squared.
        weighted_x, weighted_z = x * weights[:, None], z * weights[:, None]
        self.count += len(x)
        self._weight += float(weights.sum())
        self._squares += float(weights.square().sum())
        self._x += weighted_x.sum(0)
        self._z += weighted_z.sum(0)
        self._xx += x.T @ weighted_x
        self._xz += x.T @ weighted_z
        self._zz += z.T @ weighted_z

    def moments(self) -> JointMoments:
        total = self._weight
        # Means as distances from the first row: the squares that are subtracted below are then of
        # the size of the variances, and do not cancel.
        x, z = self._x / total, self._z / total
        return JointMoments(
            # Kish's effective sample size, which for equal weights is the number of rows.
            total * total / self._squares,
            self._x0 + x,
            self._z0 + z,
            self._xx / total - torch.outer(x, x),
            self._xz / total - torch.outer(x, z),
            self._zz / total - torch.outer(z, z),
        )
