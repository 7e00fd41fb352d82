r"""LEACE and SPLINCE: the least change of x after which no linear probe finds the concept.

Both are oblique projections, $x' = x - U(V^Tx - V^T\mu)$ with $V^TU = I$, that make the covariance
of x' with the concept zero: then no linear classifier does better than a constant one (Belrose et
al., "LEACE", arXiv 2306.03819, theorem 3.1). Of all such maps LEACE moves x least; SPLINCE moves it
least of those that leave the covariance with the labels alone (Holstege et al., arXiv 2506.10703).

Both need an offset, $V^T\mu$, or the mean moves. Where layers take none, the same algebra keeps the
mean as SPLINCE keeps the labels: a V with $V^T\mu = 0$ needs no offset (ours).
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.erasers.joint_moments import Centre, JointMoments
from salve_plugin.control.operators import LowRankMap
from salve_plugin.errors import InputError

TOLERANCE = 1e-6
"""A concept direction counts from this share of the concept's own spread: below is rounding."""

SEPARABLE = 1e-3
"""Sine of the least angle, in whitened space, between what is to go and what is to stay."""


def leace(
    moments: JointMoments, *, shrinkage: float | None = None, centre: Centre = "mean"
) -> LowRankMap:
    """Return the map that removes the values z of the moments from x, linearly, moving x least.

    Args:
        moments: of x and of the concept's values: 0/1 labels, one-hot classes, scores.
        shrinkage: of the covariance of x, see `JointMoments.covariance`; 0 is the paper's, under
            which the covariance with the concept becomes zero on the very rows that were read.
        centre: "mean" is the paper's map. "origin" is for layers that take no offset: of the maps
            through zero that remove z *and* leave the mean of x where it is, the one that moves x
            least.

    Raises:
        InputError: if x does not covary with the concept: there is nothing to remove; or, through
            the origin, if the concept lies along the mean.
    """
    return _least(moments, None, shrinkage, centre)


def splince(
    moments: JointMoments, labels: JointMoments, *, shrinkage: float | None = None,
    centre: Centre = "mean",
) -> LowRankMap:  # fmt: skip
    """Return the map that removes a concept and leaves the covariance with the labels as it is.

    Args:
        moments: of x and of the concept's values.
        labels: of the same x and of what is to be kept: one-hot classes, logits.
        shrinkage: as for `leace`.
        centre: as for `leace`.

    Raises:
        InputError: if x does not covary with the concept, or no linear map can tell the concept
            from the labels, or from the mean where that is to stay.
    """
    return _least(moments, labels, shrinkage, centre)


def _least(
    moments: JointMoments, labels: JointMoments | None, shrinkage: float | None, centre: Centre
) -> LowRankMap:
    whiten, colour = moments.whitening(shrinkage)
    basis = _basis(whiten @ moments.xz, moments, "the concept")
    kept = [] if labels is None else [_basis(whiten @ labels.xz, labels, "the labels")]
    mean = whiten @ moments.x_mean
    # Without an offset the map moves the mean by U Vᵀμ, and so every logit, unless V is blind to
    # it. A mean within rounding of zero has no direction to be blind to, and nothing to lose.
    if centre == "origin" and float(mean.norm()) > TOLERANCE:
        kept.append((mean / mean.norm())[:, None])
    # x - Σ^(1/2) B Bᵀ Σ^(-1/2) (x - μ): orthogonal where x is white, hence the least change in that
    # norm, and oblique in x itself.
    reading = _blind_to(torch.cat(kept, 1), basis) if kept else basis
    read = whiten @ reading
    offset = read.T @ moments.x_mean if centre == "mean" else read.new_zeros(read.shape[1])
    return LowRankMap(colour @ basis, read, offset)


def _blind_to(
    kept: Float64[Tensor, "width stays"], basis: Float64[Tensor, "width rank"]
) -> Float64[Tensor, "width rank"]:
    """Return the shortest N that reads the concept's basis off, NᵀA = I, and not what is to stay.

    Raises:
        InputError: if some of the concept lies along what is to stay.
    """
    left, sizes, _ = torch.linalg.svd(kept, full_matrices=False)
    left = left[:, sizes > TOLERANCE]  # the mean may be a mixture of the labels' directions
    # The part of A that is orthogonal to what stays, scaled.
    apart = basis - left @ (left.T @ basis)
    # Its eigenvalues are the squared sines of the principal angles between the two spaces.
    overlap = basis.T @ apart
    if float(torch.linalg.eigvalsh(overlap).min()) < SEPARABLE**2:
        raise InputError(
            "the concept covaries with the activations along directions in which what is to stay "
            "does (the labels, or the mean of a map through the origin), so that no linear map "
            "removes one and keeps the other; use 'leace' about the mean, or pictures in which "
            "concept and class are less tied"
        )
    reading: Tensor = torch.linalg.solve(overlap, apart.T).T
    return reading


def _basis(
    whitened: Float64[Tensor, "width values"], moments: JointMoments, name: str
) -> Float64[Tensor, "width rank"]:
    """Return an orthonormal basis of what whitened x shares with the values."""
    spread = float(moments.zz.diagonal().clamp(min=0).sum()) ** 0.5
    left, sizes, _ = torch.linalg.svd(whitened, full_matrices=False)
    # One-hot values sum to 1, so that one direction fewer than values is real. Whitened x has unit
    # variance: a singular value is a correlation times the spread of z.
    basis: Tensor = left[:, sizes > TOLERANCE * spread]
    if not spread or not basis.shape[1]:
        raise InputError(
            f"the activations do not covary with {name} at all; check the labels, or look at "
            "another site"
        )
    return basis
