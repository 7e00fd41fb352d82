"""How specific each latent is to each class: the selection score, from mean codes and spreads."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEAST_SPREAD = 1e-3
"""A latent's spread within classes counts as at least this share of the largest."""


def selection_scores(
    means: Float[Tensor, "classes latents"],
    counts: Int[Tensor, " classes"],
    spreads: Float[Tensor, " latents"] | None = None,
) -> Float[Tensor, "classes latents"]:
    """Return how specific each latent is to each class.

    All distances are in units of the latent's spread within the classes: a latent that shifts
    little but hardly varies tells a class better than one that shifts and varies much. With d_l(c)
    the distance of latent l's mean in class c from its mean over the other classes (each class
    counting once), and s_l(c) the standard deviation of the other classes' means, the score is
    d_l(c) / Σ_l d_l(c) − s_l(c) / Σ_l s_l(c): the latent's share of what sets the class
    apart minus its share of what sets the others apart from each other. It is the score of SAeUron
    (Cywiński & Deja 2025) with distances in place of means, because codes here are signed and a
    linear encoder's offset is arbitrary: adding a constant to a latent changes nothing. A latent
    that is equal in all classes scores 0; of the latents that differ in one class only, the one
    that differs most is that class's first. The scores of a class sum to 0, or to 1 if the other
    classes do not differ among themselves. Classes without rows score 0.

    Args:
        means: mean code of each class.
        counts: rows of each class; those with 0 are left out.
        spreads: of each code within the classes; None takes the means as they are.

    >>> means = torch.tensor([[5.0, 3.0, 0.0], [5.0, 0.0, 2.0], [5.0, 0.0, 0.0]])
    >>> selection_scores(means, torch.tensor([10, 10, 10]))
    tensor([[ 0.0000,  0.7500, -0.7500],
            [ 0.0000, -0.5714,  0.5714],
            [ 0.0000,  0.0000,  0.0000]])
    """
    scores = torch.zeros_like(means)
    if spreads is not None and bool(spreads.any()):
        means = in_spreads(means, spreads)
    n_classes = int((counts > 0).sum())
    if n_classes < 2:
        return scores
    of_class = means[counts > 0]
    # Centred first: the spread below is a difference of squares, which a large offset that all
    # classes share would cancel.
    of_class = of_class - of_class.mean(0)
    elsewhere = (of_class.sum(0) - of_class) / (n_classes - 1)
    distance = (of_class - elsewhere).abs()
    squares = of_class.square()
    spread = ((squares.sum(0) - squares) / (n_classes - 1) - elsewhere.square()).clamp(min=0).sqrt()
    # Where means are equal, rounding leaves about 1e-8 of their size, whose shares mean nothing.
    negligible = 1e-6 * distance.max()
    scores[counts > 0] = _shares(distance, negligible) - _shares(spread, negligible)
    return scores


def in_spreads(
    values: Float[Tensor, "classes latents"], spreads: Float[Tensor, " latents"]
) -> Float[Tensor, "classes latents"]:
    """Return values in units of each latent's spread, not all of which are 0.

    Rounding leaves a latent that never varies within a class a spread of about nothing, in units of
    which anything would be far: spreads count as at least a thousandth of the largest.
    """
    return values / spreads.clamp(min=LEAST_SPREAD * float(spreads.max()))


def _shares(sizes: Tensor, negligible: Tensor) -> Tensor:
    """Return each size as a share of its row's sum; rows of negligible sizes give 0."""
    sizes = sizes * (sizes > negligible)
    return sizes / sizes.sum(1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
