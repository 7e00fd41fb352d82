"""What an edit did to the accuracies of a class and of the others: two evaluations compared."""

from dataclasses import dataclass

import torch

from salve_plugin.control.evaluate import Evaluation
from salve_plugin.errors import InputError


@dataclass(frozen=True)
class Change:
    """What an edit meant to change one class did to that class and to the others.

    All numbers are accuracies or differences of accuracies, in [-1, 1].

    Attributes:
        label: the class that the edit is about.
        target_before: its accuracy before.
        target_after: its accuracy after.
        others_mean: mean change over the other classes, each counting once; negative is a loss.
        others_worst: the most negative change among them.
        worst_label: the class where that is.
    """

    label: int
    target_before: float
    target_after: float
    others_mean: float
    others_worst: float
    worst_label: int

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return dict(vars(self))


def change(before: Evaluation, after: Evaluation, label: int) -> Change:
    """Compare two evaluations of the same images around an edit of class `label`.

    Raises:
        InputError: if the evaluations differ in their images, the class has none, or no other
            class has any.
    """
    if not torch.equal(before.count, after.count):
        raise InputError(
            "the evaluations are of different images: by class "
            f"{before.count.tolist()[:20]} and {after.count.tolist()[:20]}"
        )
    seen = before.count > 0
    others = None
    # A negative label would be an index from the end.
    if 0 <= label < len(seen) and bool(seen[label]):
        others = change_of_others(before, after, label)
    if others is None:
        raise InputError(
            f"class {label} or all others have no images: there are {before.count.tolist()[:20]}"
        )
    mean, worst, worst_label = others
    return Change(
        label=label,
        target_before=float(before.accuracy[label]),
        target_after=float(after.accuracy[label]),
        others_mean=mean,
        others_worst=worst,
        worst_label=worst_label,
    )


def change_of_others(
    before: Evaluation, after: Evaluation, label: int | None
) -> tuple[float, float, int] | None:
    """Return how the accuracies of all classes but one change.

    Args:
        before: of some images.
        after: of the same images.
        label: the class to leave out, if any is.

    Returns:
        The mean change, each class counting once; the most negative one; the class where that is.
        None if no other class has images.
    """
    others = before.count > 0
    if label is not None:
        others[label] = False
    if not bool(others.any()):
        return None
    # Classes without images are NaN, which argmin would return before any number: they are masked.
    difference = after.accuracy - before.accuracy
    worst = int(torch.where(others, difference, torch.inf).argmin())
    return float(difference[others].mean()), float(difference[worst]), worst
