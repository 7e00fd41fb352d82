r"""LEACE and SPLINCE: the least change of x after which no linear probe finds the concept.

Both are oblique projections, $x' = x - U(V^Tx - V^T\mu)$ with $V^TU = I$, that make the covariance
of x' with the concept zero: then no linear classifier does better than a constant one (Belrose et
al., "LEACE", arXiv 2306.03819, theorem 3.1). Of all such maps LEACE moves x least; SPLINCE moves it
least of those that leave the covariance with the labels alone (Holstege et al., arXiv 2506.10703).
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.erasers.joint_moments import JointMoments
from salve_plugin.control.operators import LowRankMap
from salve_plugin.errors import InputError

TOLERANCE = 1e-6
"""A concept direction counts from this share of the concept's own spread: below is rounding."""

SEPARABLE = 1e-3
"""Sine of the least angle, in whitened space, between what is to go and what is to stay."""


def leace(moments: JointMoments, *, shrinkage: float | None = None) -> LowRankMap:
    """Return the map that removes the values z of the moments from x, linearly, moving x least.

    Args:
        moments: of x and of the concept's values: 0/1 labels, one-hot classes, scores.
        shrinkage: of the covariance of x, see `JointMoments.covariance`; 0 is the paper's, under
            which the covariance with the concept becomes zero on the very rows that were read.

    Raises:
        InputError: if x does not covary with the concept: there is nothing to remove.
    """
    whiten, colour = moments.whitening(shrinkage)
    basis = _basis(whiten @ moments.xz, moments, "the concept")
    # x - Σ^(1/2) B Bᵀ Σ^(-1/2) (x - μ): orthogonal where x is white, hence the least change in that
    # norm, and oblique in x itself.
    return _projection(whiten @ basis, colour @ basis, moments)


def splince(
    moments: JointMoments, labels: JointMoments, *, shrinkage: float | None = None
) -> LowRankMap:
    """Return the map that removes a concept and leaves the covariance with the labels as it is.

    Args:
        moments: of x and of the concept's values.
        labels: of the same x and of what is to be kept: one-hot classes, logits.
        shrinkage: as for `leace`.

    Raises:
        InputError: if x does not covary with the concept, or no linear map can tell the concept
            from the labels.
    """
    whiten, colour = moments.whitening(shrinkage)
    basis = _basis(whiten @ moments.xz, moments, "the concept")
    kept = _basis(whiten @ labels.xz, labels, "the labels")
    # N reads A off and is blind to B: NᵀA = I, NᵀB = 0. The shortest such N is the part of A that
    # is orthogonal to B, scaled.
    apart = basis - kept @ (kept.T @ basis)
    # Its eigenvalues are the squared sines of the principal angles between the two spaces.
    overlap = basis.T @ apart
    if float(torch.linalg.eigvalsh(overlap).min()) < SEPARABLE**2:
        raise InputError(
            "the concept covaries with the activations along directions in which the labels do, so "
            "that no linear map removes one and keeps the other; use 'leace', or pictures in which "
            "concept and class are less tied"
        )
    reading = torch.linalg.solve(overlap, apart.T).T
    return _projection(whiten @ reading, colour @ basis, moments)


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


def _projection(read: Tensor, write: Tensor, moments: JointMoments) -> LowRankMap:
    """Return the map about the mean, which so stays where it is."""
    return LowRankMap(write, read, read.T @ moments.x_mean)
