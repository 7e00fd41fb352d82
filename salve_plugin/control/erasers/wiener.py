r"""Soft erasure: the best linear estimate of the activation without what a concept adds to it.

If an activation is its clean self plus an effect of the concept with covariance G, and the clean
self has covariance S, then $\mu + S(S + \lambda G)^{-1}(x - \mu)$ is the linear estimate of the
clean self with the least squared error (Wiener filter; $\lambda$ says how much the effect weighs).
Along directions where the effect is large beside everything else it erases, along others it leaves
activations as they are. With one direction and $\lambda \to \infty$ it is LEACE.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.erasers.joint_moments import JointMoments
from salve_plugin.control.operators import LowRankMap
from salve_plugin.errors import InputError

WEIGHT = 10.0
"""Chosen on planted attributes in small networks: from 10 to 30 it hardly matters."""

NEGLIGIBLE = 0.02
"""Directions of which less than this share would be taken out are left alone."""


def wiener(
    moments: JointMoments,
    effects: Float64[Tensor, "width effects"],
    *,
    weight: float = WEIGHT,
    shrinkage: float | None = None,
) -> LowRankMap:
    r"""Return the map that takes out what a concept adds, as far as that outweighs all else.

    Args:
        moments: of x; the values z are not looked at.
        effects: columns e of what the concept does to x, $G = \sum ee^T$, (width, effects).
        weight: $\lambda$, how much the effect counts; the larger, the more is taken out.
        shrinkage: of the covariance of x, see `JointMoments.covariance`.

    Raises:
        InputError: if nothing would be taken out, or the weight is not positive.
    """
    return wieners(moments, effects, [weight], shrinkage=shrinkage)[0]


def wieners(
    moments: JointMoments,
    effects: Float64[Tensor, "width effects"],
    weights: Sequence[float],
    *,
    shrinkage: float | None = None,
) -> list[LowRankMap]:
    """Return the maps for several weights at the cost of one; see `wiener`.

    Raises:
        InputError: as for `wiener`, for any weight.
    """
    whiten, colour = moments.whitening(shrinkage)
    # In whitened space S is the identity, so that the filter acts along the effects' own axes.
    axes, sizes, _ = torch.linalg.svd(whiten @ effects, full_matrices=False)
    maps = []
    for weight in weights:
        if not 0 < weight < 1e12:
            raise InputError(f"weight {weight} is not a positive number; the default is {WEIGHT}")
        # Along an axis with the squared size s² the filter keeps 1 / (1 + λ s²); this is the rest.
        removed = weight * sizes.square() / (1 + weight * sizes.square())
        kept = removed > NEGLIGIBLE
        if not bool(kept.any()):
            raise InputError(
                "the concept adds next to nothing to the activations beside what they vary anyway; "
                "check the labels, or look at another site"
            )
        # Back to x on both sides: reading whitens first, and what is written is coloured again.
        read = whiten @ axes[:, kept]
        write = colour @ axes[:, kept] * removed[kept]
        maps.append(LowRankMap(write, read, read.T @ moments.x_mean))
    return maps
