"""Counts and sums over the images of one edit or control, in float64, a batch at a time."""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from salve_plugin.control.assessment.outcomes import ConceptOutcome, Effect, Ideal
from salve_plugin.control.change import change_of_others
from salve_plugin.control.evaluate import Evaluation, count_pairs


class Reference:
    """What some images are compared with: the base's probabilities, and the ideal's.

    Computed once, for the edit and all controls.
    """

    def __init__(
        self, labels: Tensor, before: Float64[Tensor, "images classes"], target: int | None
    ) -> None:
        """Compute them.

        Args:
            labels: (images,).
            before: logits without any edit.
            target: the class that is to be suppressed, if any is.
        """
        self.labels, self.logs = labels, before.log_softmax(1)
        self.is_target = labels == (-1 if target is None else target)
        if target is not None:
            self.rest = torch.arange(before.shape[1]) != target
            # From the other logits alone: dividing by 1 - p would cancel where the class is
            # certain.
            self.ideal = before[:, self.rest].log_softmax(1)
            self.runner_up = before.masked_fill(~self.rest, -torch.inf).argmax(1)


class Tally:
    """What is known of the logits that an edit, a control, or nothing at all leads to.

    Attributes:
        confusion: images by (true class, predicted class).
        probability: sum over each class's images of the class's own probability.
        predicted: the labels given, batch by batch, where they are kept.
    """

    def __init__(self, classes: int, target: int | None, *, keep: bool = False) -> None:
        """Begin with no image.

        Args:
            classes: number of classes.
            target: the class that is to be suppressed, if any is.
            keep: whether the label given to each image is kept, for pairs and groups.
        """
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.probability = torch.zeros(classes, dtype=torch.float64)
        self.predicted: list[Tensor] = []
        self._target, self._keep = target, keep
        self._count = 0
        self._mean = torch.zeros(classes, dtype=torch.float64)
        self._squares = torch.zeros(classes, dtype=torch.float64)
        self._others = _Mean()
        self._ideal = {True: _Mean(), False: _Mean()}
        self._agree = {True: _Mean(), False: _Mean()}

    def add(self, reference: Reference, logits: Float64[Tensor, "images classes"]) -> None:
        """Count the images of a reference by the logits that they have now."""
        labels = reference.labels
        count_pairs(self.confusion, labels, logits)
        logs = logits.log_softmax(1)
        own = logs.gather(1, labels[:, None])[:, 0].exp()
        self.probability.index_add_(0, labels, own)
        self._spread(logits)
        if self._keep:
            self.predicted.append(logits.argmax(1))
        others = ~reference.is_target
        self._others.add(divergence(reference.logs[others], logs[others]))
        if self._target is not None:
            self._compare(reference, logs, logits)

    def _spread(self, logits: Float64[Tensor, "images classes"]) -> None:
        """Merge means and sums of squares (Chan et al. 1979): no cancellation for large logits."""
        count = len(logits)
        mean = logits.mean(0)
        total = self._count + count
        gap = mean - self._mean
        self._squares += (logits - mean).square().sum(0) + gap.square() * (
            self._count * count / total
        )
        self._mean += gap * (count / total)
        self._count = total

    def _compare(
        self,
        reference: Reference,
        logs: Float64[Tensor, "images classes"],
        logits: Float64[Tensor, "images classes"],
    ) -> None:
        """Compare with the ideal: the base's probabilities renormalized without the class."""
        # The edited probabilities are not renormalized: what is left to the class counts as
        # distance.
        distance = divergence(reference.ideal, logs[:, reference.rest])
        agree = (logits.argmax(1) == reference.runner_up).double()
        for whose in (True, False):
            here = reference.is_target == whose
            self._ideal[whose].add(distance[here])
            self._agree[whose].add(agree[here])

    @property
    def spread(self) -> Float64[Tensor, " classes"]:
        """Standard deviation of each logit over all images (population)."""
        return (self._squares / self._count).sqrt()

    @property
    def evaluation(self) -> Evaluation:
        """The labels given, by class."""
        return Evaluation(self.confusion)

    @property
    def ideal(self) -> Ideal | None:
        """The distance to the ideal suppression of the target."""
        if self._target is None:
            return None
        kl_target, runner_up = self._ideal[True].value, self._agree[True].value
        assert kl_target is not None  # the target has images
        assert runner_up is not None
        kl_others = self._ideal[False].value
        return Ideal(kl_others, kl_target, self._agree[False].value, runner_up)

    def effect(self, before: Evaluation, concept: ConceptOutcome | None) -> Effect:
        """Return what the labels, and the divergence on everything else, say of the change."""
        after = self.evaluation
        others = change_of_others(before, after, self._target)
        mean, worst, label = (None, None, None) if others is None else others
        target = None if self._target is None else float(after.accuracy[self._target])
        return Effect(
            after.overall, concept, self.ideal, self._others.value, mean, target, worst, label
        )


class _Mean:
    """A mean of numbers that come in pieces; None of nothing."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self._sum += float(values.sum())
        self._count += len(values)

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


def divergence(
    first: Float64[Tensor, "images classes"], second: Float64[Tensor, "images classes"]
) -> Float64[Tensor, " images"]:
    """Return KL(p || q) in nats of the rows of log p and log q; q may miss some mass."""
    # Not below zero: where p and q are the same, rounding leaves a few eps of either sign.
    return (first.exp() * (first - second)).sum(1).clamp(min=0)


def concept_outcome(
    labels: Int64[Tensor, " images"],
    has: Bool[Tensor, " images"],
    predicted: Int64[Tensor, " images"],
    pairs: int,
) -> ConceptOutcome:
    """Return what a concept does to the labels given.

    Args:
        labels: true classes.
        has: whether each image has the concept.
        predicted: the labels given.
        pairs: of how many images from the first on the counterparts follow behind all of them, in
            the same order; 0 without counterparts.
    """
    right = (predicted == labels).double()
    groups = [
        (float(right[member].mean()), label, bool(state))
        for label in sorted(set(labels.tolist()))
        for state in (False, True)
        if bool((member := (labels == label) & (has == state)).any())
    ]
    # Of equally bad groups the first by class, and the one without the concept: the same
    # everywhere.
    worst, label, state = min(groups)
    flips = None
    if pairs:
        flips = float((predicted[:pairs] != predicted[pairs:]).double().mean())
    return ConceptOutcome(
        float(right[has].mean()) if bool(has.any()) else None,
        float(right[~has].mean()) if bool((~has).any()) else None,
        flips,
        label,
        worst,
        state,
    )
