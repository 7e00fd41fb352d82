r"""Paired repair: the low-rank map that takes marked activations back to their unmarked selves.

Where the same picture is there with and without a concept, nothing about the concept's effect has
to be assumed: least squares says which change of few directions brings $x_m$ back to its own $x_c$
and leaves $x_c$ where it is. It is no projection ($V^TU \neq I$): it goes as far as the pairs say.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.erasers.joint_moments import Centre
from salve_plugin.control.operators import LowRankMap
from salve_plugin.errors import InputError

RIDGE = 1e-3
"""Share of the mean variance that is added to each direction's: few pairs leave many unseen."""


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Second moments about a centre of activations with and without a concept, in pairs.

    Attributes:
        n_rows: number of pairs of rows.
        mean: the centre: the mean of the clean activations, or zero; (width,).
        clean: $E[z_c z_c^T]$, (width, width).
        marked: $E[z_m z_m^T]$.
        cross: $E[(x_m - x_c) z_m^T]$; not symmetric.
    """

    n_rows: int
    mean: Float64[Tensor, " width"]
    clean: Float64[Tensor, "width width"]
    marked: Float64[Tensor, "width width"]
    cross: Float64[Tensor, "width width"]

    @classmethod
    def of(cls, parts: Iterable[tuple[Tensor, Tensor]], centre: Centre = "mean") -> "PairMoments":
        """Read the pairs once.

        Args:
            parts: (with the concept (rows, width), the same without it (rows, width)) pieces.
            centre: about which moments are taken: the clean "mean", or the "origin" for a map
                without an offset.

        Raises:
            InputError: if there are fewer than two pairs, shapes differ, or a value is not finite.
        """
        count, origin = 0, torch.zeros(())
        sums, clean, marked, cross = (torch.zeros(()) for _ in range(4))
        total = torch.zeros(())
        for with_, without in parts:
            if with_.shape != without.shape or with_.ndim != 2:
                raise InputError(
                    f"activations with {tuple(with_.shape)} and without {tuple(without.shape)} are "
                    "no pairs: expected (rows, width) twice"
                )
            if not len(with_):
                continue
            if not bool(with_.isfinite().all() & without.isfinite().all()):
                raise InputError("activations hold NaN or infinite entries; record again")
            if not count:
                origin = without[0].double() * (centre == "mean")
            m, c = with_.double() - origin, without.double() - origin
            count += len(c)
            sums, total = sums + c.sum(0), total + m.sum(0)
            clean, marked = clean + c.T @ c, marked + m.T @ m
            cross = cross + (m - c).T @ m
        if count < 2:
            raise InputError(f"{count} pairs are too few to repair anything; record more")
        if centre == "origin":
            return cls(count, origin, clean / count, marked / count, cross / count)
        mean, shift = sums / count, (total - sums) / count
        around = mean + shift  # of the marked ones, seen from the origin
        return cls(
            count,
            origin + mean,
            clean / count - torch.outer(mean, mean),
            # About the clean mean, not their own: where the mark is what moves the mean, that
            # movement is what has to be undone.
            marked / count
            - torch.outer(around, mean)
            - torch.outer(mean, around)
            + torch.outer(mean, mean),
            cross / count - torch.outer(shift, mean),
        )


def repair(
    moments: PairMoments, *, rank: int = 1, clean: float = 1.0, ridge: float = RIDGE
) -> LowRankMap:
    r"""Return the map closest to "marked becomes its own clean self, clean stays".

    $\min_M E\|x_m - M z_m - x_c\|^2 + \gamma E\|M z_c\|^2$ over M of a given rank: reduced-rank
    ridge regression of the pairs' differences on the marked activations (Izenman 1975). The rank is
    what regularizes: every further direction also takes something from clean pictures.

    Args:
        moments: of the pairs.
        rank: number of directions.
        clean: $\gamma$, how much leaving clean activations alone counts.
        ridge: see `RIDGE`.

    Raises:
        InputError: if an option is out of range, or the pairs do not differ.
    """
    width = len(moments.mean)
    if not 1 <= rank <= width or not 0 <= clean < 1e12 or not 0 < ridge < 1e12:
        raise InputError(
            f"rank {rank}, clean {clean} and ridge {ridge}: expected a rank from 1 to {width}, no "
            "negative share, and a positive ridge"
        )
    # The normal equations: M (E[z_m z_mᵀ] + γ E[z_c z_cᵀ]) = E[(x_m - x_c) z_mᵀ].
    target = moments.marked + clean * moments.clean
    # In units of the mean variance, so that the same ridge fits activations of any scale; it also
    # makes the Cholesky factor exist where there are fewer pairs than features.
    target = target + ridge * target.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    factor = torch.linalg.cholesky(target)
    # A = K L⁻ᵀ: in coordinates where the squared error is the plain one, the best map of a rank is
    # the truncated singular value decomposition (Eckart & Young).
    coefficients = torch.linalg.solve_triangular(factor, moments.cross.T, upper=False).T
    left, sizes, right = torch.linalg.svd(coefficients, full_matrices=False)
    if not float(sizes[0]) > 0:
        raise InputError("the pairs do not differ at this site: there is nothing to repair")
    # Back from those coordinates: M = A_r L⁻¹, so that V is L⁻ᵀ times the right singular vectors.
    read = torch.linalg.solve_triangular(factor.T, right[:rank].T.contiguous(), upper=True)
    return LowRankMap(left[:, :rank] * sizes[:rank], read, read.T @ moments.mean)
