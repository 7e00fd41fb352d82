"""Which class each latent tells best, by the area under the ROC curve, beside permuted labels."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import rankdata
from torch import Tensor

from salve_plugin.validate.evidence.permuting import p_values, upper

_COLUMNS = 32
NO_CLASS = -1
"""Label of a latent that tells no class: its codes, or the labels, are all alike."""


@dataclass(frozen=True, eq=False)
class ClassProfile:
    """The class that each latent tells best, and how much of that is the choice among classes.

    Attributes:
        label: with the largest standardized rank sum; -1 for a latent that is constant.
        z: that sum, in standard deviations over all orders of the labels.
        auc: how often a random image of the class has a larger code than one of the others; ties
            count half. NaN without a class.
        auc_null: the area that the class would have at the 95 % quantile of the largest z of any
            class with permuted labels.
        auc_p: share of the permutations in which the best class is told as well, itself counted.
        maxima: largest z of any class and any of these latents in each permutation.
    """

    label: Int64[Tensor, " latents"]
    z: Float64[Tensor, " latents"]
    auc: Float64[Tensor, " latents"]
    auc_null: Float64[Tensor, " latents"]
    auc_p: Float64[Tensor, " latents"]
    maxima: Float64[Tensor, " permutations"]


def class_profile(
    codes: Float[Tensor, "images latents"],
    labels: Int64[Tensor, " images"],
    permuted: Int64[Tensor, "permutations images"],
    groups: Bool[Tensor, "groups classes"] | None = None,
) -> ClassProfile:
    """Return the class that each latent tells best, by Mann-Whitney rank sums.

    Classes are compared by standardized sums and not by areas, because by chance the area of a
    small class is far from 1/2 more often. Ties are accounted for exactly: the variance of a rank
    sum over all orders of the labels is n_c (n - n_c) / (n - 1) times that of the ranks.

    Args:
        codes: of each image, larger where the latent is more active.
        labels: class of each image.
        permuted: the same in random orders.
        groups: which classes count as one; then "class" is a group, and they may overlap.
    """
    # A few columns at a time: ranking holds several copies of what it ranks.
    columns_of = np.array_split(codes.double().numpy(), max(1, codes.shape[1] // _COLUMNS), axis=1)
    ranks = np.concatenate([rankdata(part, axis=0) for part in columns_of], axis=1)
    counts = torch.bincount(labels)
    joined = None
    if groups is not None:
        counts = torch.bincount(labels, minlength=groups.shape[1])
        joined = csr_matrix(groups.double().numpy())
        counts = groups.long() @ counts
    of_class = _Standardized(ranks, counts.numpy(), joined)
    z, spread = of_class.z(labels.numpy()), of_class.spread
    # The mean of a small class varies more by chance: areas would favour it, z does not.
    best = z.argmax(0)
    columns = np.arange(z.shape[1])
    null = torch.from_numpy(np.stack([of_class.z(order).max(0) for order in permuted.numpy()]))
    best_z = torch.from_numpy(z[best, columns])
    # The area is the rank sum less its least value, in units of the pairs of images.
    pairs = (counts * (len(labels) - counts)).double()[best]
    scale = torch.from_numpy(spread[best, columns]) / pairs
    # Exact: where all ranks are tied, each is (n + 1) / 2, of which nothing is left below.
    told = torch.from_numpy(spread[best, columns] > 0)
    return ClassProfile(
        torch.where(told, torch.from_numpy(best), NO_CLASS),
        torch.where(told, best_z, torch.nan),
        torch.where(told, 0.5 + best_z * scale, torch.nan),
        # Of too few images no area is beyond chance, and none is above 1.
        torch.where(told, (0.5 + upper(null) * scale).clamp(max=1.0), torch.nan),
        p_values(best_z, null),
        null.amax(1),
    )


class _Standardized:
    """Rank sums of classes in standard deviations; 0 where nothing can vary."""

    def __init__(
        self,
        ranks: NDArray[np.float64],
        counts: NDArray[np.int64],
        groups: csr_matrix | None,
    ) -> None:
        n_images = len(ranks)
        # Ranks less their mean, which no tie moves: by chance a class's sum is then 0.
        self._ranks, self._groups = ranks - (n_images + 1) / 2, groups
        self._n_classes = len(counts) if groups is None else groups.shape[1]
        among = counts * (n_images - counts) / max(1, n_images - 1)
        self.spread = np.sqrt(np.outer(among, np.square(self._ranks).mean(0)))

    def z(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (classes, latents) for one order of the labels."""
        n_images = len(labels)
        entries = (np.ones(n_images), (labels, np.arange(n_images)))
        # Sparse, since the dense indicator of 1000 classes would cost 1000 times the additions.
        sums = csr_matrix(entries, shape=(self._n_classes, n_images)) @ self._ranks
        sums = sums if self._groups is None else self._groups @ sums
        varies = self.spread > 0
        z: NDArray[np.float64] = np.divide(sums, self.spread, out=np.zeros_like(sums), where=varies)
        return z
