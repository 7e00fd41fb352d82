"""How well a score tells pictures with a concept from those without, and how sure that is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from msgspec import Meta
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from salve_plugin.faces.one_line import one_line
from salve_plugin.site import Count
from salve_plugin.store.record import Record

RESAMPLES = 1000
"""Bootstrap resamples for an interval."""

Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class ConceptEvidence(Record):
    """How well a concept is detected in images that its probe was not fitted on.

    Attributes:
        auc: area under the ROC curve over images: how often an image with it scores higher.
        auc_low: lower end of its 95 % bootstrap interval over images, or over the groups of images
            that belong together, which are no separate witnesses.
        auc_high: upper end.
        null_auc: 95 % quantile of the same after the labels were permuted and all was fitted anew.
        correlation: of the held-out scores with having the concept, over images.
        n_with: images that have it.
        n_without: images that do not.
    """

    __repr__ = one_line

    auc: Share
    auc_low: Share
    auc_high: Share
    null_auc: Share
    correlation: Annotated[float, Meta(ge=-1, le=1)]
    n_with: Count
    n_without: Count

    @property
    def is_real(self) -> bool:
        """Whether the whole interval lies above what chance reaches."""
        return self.auc_low > self.null_auc


def auc(scores: Float64[Tensor, " images"], has: Bool[Tensor, " images"]) -> float:
    """Return the area under the ROC curve; ties count half.

    >>> scores = torch.tensor([0.1, 0.4, 0.35, 0.8], dtype=torch.float64)
    >>> auc(scores, torch.tensor([False, False, True, True]))
    0.75

    Args:
        scores: of each image.
        has: whether it has the concept; some must and some must not.
    """
    return float(_aucs(scores.double().numpy()[None], has.numpy())[0])


def _aucs(scores: NDArray[np.float64], has: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the area for each row of scores (rows, images): the Mann-Whitney statistic."""
    n_with = int(has.sum())
    n_without = len(has) - n_with
    # Ties share their mean rank, which makes half a win of each.
    ranks = rankdata(scores, axis=1)
    areas: NDArray[np.float64] = (ranks[:, has].sum(1) - n_with * (n_with + 1) / 2) / (
        n_with * n_without
    )
    return areas


def evidence_of(
    scores: Float64[Tensor, " images"],
    has: Bool[Tensor, " images"],
    null: Float64[Tensor, "images permutations"],
    permuted: Bool[Tensor, "images permutations"],
    groups: Int64[Tensor, " images"],
    *,
    seed: int = 0,
) -> ConceptEvidence:
    """Return the evidence that held-out scores are.

    Args:
        scores: of each image, by a probe that has not seen it.
        has: whether it has the concept.
        null: scores by probes that were fitted to permuted labels.
        permuted: those labels.
        groups: of each image, which are resampled as a whole.
        seed: of the resamples.
    """
    values, labels = scores.double().numpy(), has.numpy()
    drawn = [
        float(_aucs(values[images][None], labels[images])[0])
        for images in islice(_resamples(labels, groups.numpy(), seed), RESAMPLES)
    ]
    chance = [auc(null[:, column], permuted[:, column]) for column in range(permuted.shape[1])]
    spread = float(values.std())
    correlation = float(np.corrcoef(values, labels)[0, 1]) if spread > 0 else 0.0
    low, high = np.quantile(drawn, [0.025, 0.975])
    return ConceptEvidence(
        auc(scores, has), float(low), float(high), float(np.quantile(chance, 0.95)),
        # Rounding may leave a correlation just beyond 1, which the record refuses.
        max(-1.0, min(1.0, correlation)) if math.isfinite(correlation) else 0.0,
        int(labels.sum()), int((~labels).sum()),
    )  # fmt: skip


def _resamples(
    labels: NDArray[np.bool_], groups: NDArray[np.int64], seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the images of as many groups as there are, drawn with replacement, without end."""
    random = np.random.default_rng(seed)
    _, numbers = np.unique(groups, return_inverse=True)
    members, sizes = numbers.argsort(kind="stable"), np.bincount(numbers)
    starts = sizes.cumsum() - sizes
    marked = np.isin(np.arange(len(sizes)), numbers[labels])
    # Resampled apart, so that resamples have images of both kinds.
    sides = [side for side in (marked.nonzero()[0], (~marked).nonzero()[0]) if len(side)]
    while True:
        chosen = np.concatenate([random.choice(side, len(side)) for side in sides])
        counts = sizes[chosen]
        first = np.repeat(starts[chosen] - (counts.cumsum() - counts), counts)
        images = members[first + np.arange(counts.sum())]
        # Of groups of both kinds and of one, those of one alone may have been drawn.
        if 0 < labels[images].sum() < len(images):
            yield images


def over_images(
    row_scores: Float64[Tensor, " rows"], images: Tensor, n_images: int
) -> Float64[Tensor, " images"]:
    """Return the highest score over the positions of each image: a concept may be anywhere."""
    best = torch.full((n_images,), -torch.inf, dtype=torch.float64)
    return best.scatter_reduce(0, images, row_scores.double(), "amax")
