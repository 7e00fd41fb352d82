r"""Directional and mean ablation, INLP and SAFREE: orthogonal projections, $U = V$."""

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.erasers.joint_moments import Centre, JointMoments
from salve_plugin.control.operators import LowRankMap
from salve_plugin.errors import InputError


def directional_ablation(moments: JointMoments, *, centre: Centre = "mean") -> LowRankMap:
    r"""Return the map that takes out the difference of means, $x' = x - \hat r(\hat r^Tx - c)$.

    For 0/1 values the covariance with x is the difference of the two means up to a factor; for
    several values their directions are taken out together.

    Args:
        moments: of x and of the concept's values.
        centre: "mean" puts the mean reading in place of each ($c = \hat r^T\mu$: mean ablation);
            "origin" zero (Arditi et al., arXiv 2406.11717), which shifts every logit and can make
            one class swallow its neighbour.

    Raises:
        InputError: if x does not covary with the concept.
    """
    return _orthogonal(_orthonormal(moments.xz), moments, centre)


def inlp(
    moments: JointMoments, *, iterations: int = 8, shrinkage: float | None = None,
    min_r2: float = 0.01, centre: Centre = "mean",
) -> LowRankMap:  # fmt: skip
    """Return the map that takes out what least-squares probes find, one after another.

    Iterated nullspace projection (Ravfogel et al., arXiv 2004.07667): a probe is fitted, its
    directions are projected out, the next is fitted on what is left. The probes here are ridge
    regressions, which need the moments only.

    Args:
        moments: of x and of the concept's values.
        iterations: at most so many probes.
        shrinkage: of the covariance that the probes see, see `JointMoments.covariance`.
        min_r2: stop once a probe explains less than this share of the concept's variance.
        centre: as for `directional_ablation`.

    Raises:
        InputError: if the first probe explains less than that already, or an option is out of
            range.
    """
    if iterations < 1 or not 0 <= min_r2 < 1:
        raise InputError(
            f"iterations {iterations} and min_r2 {min_r2}: expected at least 1, and [0, 1)"
        )
    width = len(moments.x_mean)
    covariance = moments.covariance(shrinkage)
    # A value that never varies covaries with nothing: its share becomes 0 / tiny and not 0 / 0.
    variance = moments.zz.diagonal().clamp(min=torch.finfo(torch.float64).tiny)
    directions = torch.zeros(width, 0, dtype=torch.float64)
    # Of the whole covariance's rounding: what is left once all variance is taken out is rounding,
    # whose inverse, taken relative to itself, would find the directions of before again.
    noise = 10 * width * torch.finfo(torch.float64).eps * float(covariance.diagonal().max())
    for _ in range(iterations):
        # The complement of all directions so far, from their orthonormal basis: a product of single
        # projections is a projection only where their directions are orthogonal.
        keep = torch.eye(width, dtype=torch.float64) - directions @ directions.T
        cross = keep @ moments.xz
        # The pseudo-inverse solves within what is left; a plain solve would meet the null space.
        left = keep @ covariance @ keep
        probe = torch.linalg.pinv(left, hermitian=True, atol=noise, rtol=0.0) @ cross
        explained = ((cross * probe).sum(0) / variance).max()
        # A share of 0 is below no `min_r2` of 0.
        if float(explained) < min_r2 or not bool(probe.any()):
            break
        # Projected once more, since the pseudo-inverse lets rounding leak: the columns must stay
        # orthonormal for keep to be a projection.
        fresh = _orthonormal(keep @ probe)
        directions = torch.cat([directions, fresh], 1)
        if directions.shape[1] >= width:
            break
    if not directions.shape[1]:
        raise InputError(
            f"a linear probe explains less than {min_r2:.0%} of the concept's variance: there is "
            "nothing to remove; check the labels, or look at another site"
        )
    return _orthogonal(directions, moments, centre)


def safree(
    vectors: Float64[Tensor, "width vectors"], moments: JointMoments, *, span: float = 1.0,
    centre: Centre = "mean",
) -> LowRankMap:  # fmt: skip
    r"""Return the map that takes out the span of several concept vectors, within the data's span.

    SAFREE (Yoon et al., arXiv 2410.12761) projects onto the complement of the concept's vectors and
    then back into the space of the inputs, $P_I(I - P_C)x$: here $P_I$ holds the principal
    directions of x, so that what is written stays where activations are.

    Args:
        vectors: of the concept: atoms, differences of class means or of pairs, (width, vectors).
        moments: of x; its values z are not looked at.
        span: share of the variance of x that the kept directions explain; 1 keeps all of them, and
            the map is the orthogonal projection.
        centre: as for `directional_ablation`.

    Raises:
        InputError: if the vectors are all zero or do not fit, or the share is out of range.
    """
    if vectors.ndim != 2 or len(vectors) != len(moments.x_mean) or not 0 < span <= 1:
        raise InputError(
            f"concept vectors {tuple(vectors.shape)} and span {span}: expected "
            f"({len(moments.x_mean)}, vectors) and a share above 0, at most 1"
        )
    directions = _orthonormal(vectors.double())
    projection = _orthogonal(directions, moments, centre)
    if span == 1:
        return projection
    spreads, axes = torch.linalg.eigh(moments.xx)
    # `eigh` sorts ascending, and rounding makes some zero variances slightly negative.
    shares = spreads.flip(0).clamp(min=0).cumsum(0) / spreads.clamp(min=0).sum()
    kept = axes.flip(1)[:, : int((shares < span).sum()) + 1]
    # Only what is taken out is put back into the span: for x within it that is P_I(I - P_C)x, and
    # what x has outside is left alone, which a weight edit of low rank could not remove.
    return LowRankMap(kept @ (kept.T @ directions), directions, projection.offset)


def _orthonormal(vectors: Tensor) -> Float64[Tensor, "width rank"]:
    """Return an orthonormal basis of the span of the columns."""
    left, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
    # Directions of dependent columns have singular values of rounding size, and would be made up.
    basis: Tensor = left[:, sizes > 1e-9 * sizes[0]] if float(sizes[0]) > 0 else left[:, :0]
    if not basis.shape[1]:
        raise InputError(
            "the activations do not covary with the concept at all, or its vectors are zero; check "
            "the labels, or look at another site"
        )
    return basis


def _orthogonal(directions: Tensor, moments: JointMoments, centre: Centre) -> LowRankMap:
    if centre not in ("origin", "mean"):
        raise InputError(f"centre {centre!r} is unknown; give 'mean' or 'origin'")
    offset = directions.T @ moments.x_mean
    return LowRankMap(directions, directions, offset if centre == "mean" else 0 * offset)
