"""Images by class and concept, and what a head's decisions owe to the concept."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.erasers import JointMoments

LEAST_IMAGES = 5
"""Groups of fewer images do not count as the worst one: their accuracy is chance."""

SURE = 3.0
"""Standard errors by which a class's share of the concept differs from the others', to be
affected."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The images by class and concept.

    Attributes:
        labels: class of each image.
        flags: whether it has the concept.
        weights: of each image, every group counting alike; they sum to 1.
        paired: whether the images are pairs, those with the concept first.
    """

    labels: Int64[Tensor, " images"]
    flags: Bool[Tensor, " images"]
    weights: Float64[Tensor, " images"]
    paired: bool

    @classmethod
    def of(cls, concept: Concept) -> "Groups":
        """Read them off a concept."""
        weights = concept.group_weights()
        return cls(concept.labels(), concept.flags(), weights / weights.sum(), concept.is_paired)

    @cached_property
    def _group(self) -> Int64[Tensor, " images"]:
        return 2 * self.labels + self.flags.long()

    @cached_property
    def sizes(self) -> Int64[Tensor, " groups"]:
        """Number of images of every group, at 2 label + flag."""
        return torch.bincount(self._group, minlength=2 * int(self.labels.max()) + 2)

    def accuracies(self, predicted: Int64[Tensor, " images"]) -> dict[tuple[int, bool], float]:
        """Return the accuracy of every group that has enough images."""
        right = torch.bincount(self._group[predicted == self.labels], minlength=len(self.sizes))
        shares = right.double() / self.sizes.double()
        enough = (self.sizes >= LEAST_IMAGES).nonzero()[:, 0].tolist()
        return {(group // 2, bool(group % 2)): float(shares[group]) for group in enough}

    def worst_loss(self, logits: Float64[Tensor, "images classes"]) -> float:
        """Return the largest mean cross-entropy of a group that has enough images.

        It follows every image's probability where an accuracy follows those near the boundary
        alone, so that it tells edits apart which label the same few images rightly.
        """
        losses = torch.nn.functional.cross_entropy(logits, self.labels, reduction="none")
        totals = torch.bincount(self._group, losses, minlength=len(self.sizes))
        return float((totals / self.sizes)[self.sizes >= LEAST_IMAGES].max())

    def error(self, predicted: Int64[Tensor, " images"]) -> float:
        """Return the standard error of the worst group's accuracy."""
        accuracy, (label, flag) = min(
            (value, key) for key, value in self.accuracies(predicted).items()
        )
        count = int(self.sizes[2 * label + flag])
        # With one success and one failure more: none of five is not "never, and surely so".
        share = (round(accuracy * count) + 1) / (count + 2)
        return float((share * (1 - share) / count) ** 0.5)

    def flips(self, predicted: Int64[Tensor, " images"]) -> float:
        """Return the share of pairs whose two images are labelled differently."""
        half = len(predicted) // 2
        return float((predicted[:half] != predicted[half:]).double().mean())

    def dependence(self, logits: Float64[Tensor, "images classes"]) -> float:
        """Return how much of having the concept the logits tell, linearly, within a class: R²."""
        # Both are centred within each class: what is left of the correlation is what the logits
        # tell of the concept beyond the class (Frisch, Waugh and Lovell).
        centred, z = logits.clone(), self.flags.double().clone()
        weights = self.weights
        for label in set(self.labels.tolist()):
            mine = self.labels == label
            share = weights[mine] / weights[mine].sum()
            centred[mine] -= share @ centred[mine]
            z[mine] -= share @ z[mine]
        moments = JointMoments.of([(centred, z[:, None], weights)])
        # The pseudo-inverse, since logits of more classes than features are linearly dependent, and
        # from many images next to no shrinkage is estimated.
        solved = torch.linalg.pinv(moments.covariance(None), hermitian=True) @ moments.xz
        variance = float(moments.zz[0, 0])
        return float((moments.xz * solved).sum()) / variance if variance > 0 else 0.0

    def affected(self, n_classes: int) -> list[int]:
        """Return the classes that have the concept more or less often than the others do."""
        share = float(self.flags.double().mean())
        result = []
        for label in range(n_classes):
            mine = self.flags[self.labels == label].double()
            # The standard error of a class that is a plain draw of all images: that is what is to
            # be refuted.
            spread = (share * (1 - share) / max(1, len(mine))) ** 0.5
            if len(mine) and spread > 0 and abs(float(mine.mean()) - share) > SURE * spread:
                result.append(label)
        return result
