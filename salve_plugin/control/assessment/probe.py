"""A linear probe, held out: how well a direction tells two kinds of images apart."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from salve_plugin.errors import InputError

FOLDS = 5
CHOICES = tuple((ridge, alike) for alike in (False, True) for ridge in (1e-3, 1e-1, 10.0))
"""Penalties tried, in units of the variance of each feature, or of all alike.

The best is chosen inside of each fold: a mark that one large feature among many small ones carries
is lost when all are scaled to the same size, and one of a small feature when they are not.
"""


@dataclass(frozen=True)
class Probed:
    """Balanced accuracy of a linear probe on images that it was not fitted on.

    Attributes:
        accuracy: mean of the shares of the images with and without the mark told rightly.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    accuracy: float
    low: float
    high: float


def probe(
    x: Float64[Tensor, "images width"], marked: Bool[Tensor, " images"], seed: int = 0
) -> Probed:
    """Fit a linear probe in five folds and return its balanced accuracy on what was held out.

    Ridge regression on the mark, both kinds weighing the same; the penalty (`CHOICES`) is chosen on
    a quarter of each fold's own fitting images. The interval is of the mean of two proportions,
    with a success and a failure added to each (Agresti and Caffo 2000), so that it has a width at
    100 %, too.

    Args:
        x: features.
        marked: which images have the mark.
        seed: of the folds.

    Raises:
        InputError: if either kind has fewer images than there are folds times two, or a feature
            is not finite.
    """
    counts = [int(marked.sum()), int((~marked).sum())]
    if min(counts) < 2 * FOLDS:
        raise InputError(
            f"{counts[0]} images with the mark and {counts[1]} without it are too few for a probe "
            f"with {FOLDS} folds; give at least {2 * FOLDS} of each"
        )
    if not bool(x.isfinite().all()):  # as those of a model in half precision may be
        raise InputError(
            "features are NaN or infinite, and no probe can be fitted to them: leave the site out, "
            "or take the model in float32"
        )
    folds = _folds(marked, FOLDS, seed)
    right = torch.zeros(len(x), dtype=torch.bool)
    for fold in range(FOLDS):
        held = folds == fold
        right[held] = _told(x[~held], marked[~held], x[held], seed) == marked[held]
    shares, variances = [], 0.0
    for kind in (marked, ~marked):
        successes, count = int(right[kind].sum()), int(kind.sum())
        shares.append(successes / count)
        adjusted = (successes + 1) / (count + 2)
        variances += adjusted * (1 - adjusted) / (count + 2)
    accuracy = sum(shares) / 2
    # The mean of two shares has a quarter of the variance of their sum.
    half = 1.96 * variances**0.5 / 2
    return Probed(accuracy, max(0.0, accuracy - half), min(1.0, accuracy + half))


def _folds(marked: Bool[Tensor, " images"], count: int, seed: int) -> Int64[Tensor, " images"]:
    """Return the fold of each image, each fold with as many of both kinds as can be."""
    generator = torch.Generator().manual_seed(seed)
    folds = torch.empty(len(marked), dtype=torch.int64)
    for kind in (marked, ~marked):
        size = int(kind.sum())
        folds[kind] = torch.randperm(size, generator=generator) % count
    return folds


def _told(x: Tensor, marked: Tensor, new: Tensor, seed: int) -> Tensor:
    """Fit on some images and say which of the new ones have the mark."""
    inner = _folds(marked, 4, seed + 1) == 0
    scores = []
    for choice in CHOICES:
        weight, bias = _ridge(x[~inner], marked[~inner], *choice)
        # Judged by the balanced accuracy, as the probe itself is.
        told = x[inner] @ weight + bias > 0
        own = marked[inner]
        scores.append(float(told[own].double().mean() + (~told)[~own].double().mean()))
    # The strongest penalty among equals: it is the one that noise moves least.
    best = max(range(len(CHOICES)), key=lambda at: (scores[at], CHOICES[at]))
    weight, bias = _ridge(x, marked, *CHOICES[best])
    return new @ weight + bias > 0


def _ridge(x: Tensor, marked: Tensor, ridge: float, alike: bool) -> tuple[Tensor, Tensor]:
    weights = 0.5 / torch.where(marked, marked.sum(), (~marked).sum()).double()
    goal = torch.where(marked, 1.0, -1.0).double()
    mean = weights @ x
    centred = x - mean
    spread = (weights @ centred.square()).sqrt()
    if alike:
        spread = spread.square().mean().sqrt().expand_as(spread)
    # A feature without spread tells nothing, and is not to be divided by.
    scale = torch.where(spread > 1e-12 * spread.max(), spread, torch.inf)
    scaled = centred / scale
    if scaled.shape[1] <= len(scaled):
        gram = scaled.T @ (weights[:, None] * scaled)
        gram.diagonal().add_(ridge)
        weight = torch.cholesky_solve((scaled.T @ (weights * goal))[:, None], _factor(gram))[:, 0]
    else:
        # The same solution from the images' side, where there are fewer of them than features.
        half = weights.sqrt()[:, None] * scaled
        gram = half @ half.T
        gram.diagonal().add_(ridge)
        solved = torch.cholesky_solve((weights.sqrt() * goal)[:, None], _factor(gram))
        weight = (half.T @ solved)[:, 0]
    weight = weight / scale
    # Both kinds weigh a half, so that the goal's mean is 0: the bias only undoes the centring.
    return weight, -(mean @ weight)


def _factor(gram: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.cholesky(gram)
    return factor
