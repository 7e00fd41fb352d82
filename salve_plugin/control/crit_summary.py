"""Critical strengths of many images in a few numbers, by class."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.operators.base import real
from salve_plugin.control.solving import present
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular, percent, shown


@dataclass(frozen=True, eq=False)
class ClassCrit:
    """The critical strengths of one class in a few numbers.

    Attributes:
        label: class index.
        count: its images.
        already: share that is at or below the target without any edit.
        unreachable: share that no strength brings there.
        quantiles: of all its images, by name: "10 %", "25 %", "median", "75 %", "90 %", "95 %";
            infinite where the order statistic is.
    """

    label: int
    count: int
    already: float
    unreachable: float
    quantiles: Mapping[str, float]

    LEVELS: ClassVar[Mapping[str, float]] = {
        "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "95 %": 0.95
    }  # fmt: skip
    """The share of images below each quantile."""

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values; an infinite quantile is None."""
        finite = {
            str(self.LEVELS[name]): None if value == float("inf") else value
            for name, value in self.quantiles.items()
        }
        return {
            "label": self.label,
            "count": self.count,
            "already": self.already,
            "unreachable": self.unreachable,
            "quantiles": finite,
        }


class Summarized(Tabular):
    """What is asked of critical strengths, however they were obtained.

    Attributes:
        values: the strengths, (images,); 0: there already; inf: never.
        labels: class of each image, (images,).
        target: what is reached.
        against: whose logit.
        classes: class names, if known.
    """

    values: Float64[Tensor, " images"]
    labels: Int64[Tensor, " images"]
    target: str
    against: str
    classes: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        """Say in one line of how many images, and how strong an edit they need."""
        count = len(self.values)
        median = self.values.sort().values[order_statistic(count, 0.5)].item() if count else None
        already, never = (
            percent(float(these.double().mean()))
            for these in (self.values == 0, self.values.isinf())
        )
        return (
            f"<{type(self).__name__} of {count} images (target '{self.target}', against "
            f"'{self.against}'): median {shown(median)}, {already} there already, {never} never>"
        )

    def as_table(self) -> Table:
        """Return the summary by class as a table."""
        rows = [
            (
                self.classes[entry.label] if self.classes else str(entry.label),
                entry.count, percent(entry.already), percent(entry.unreachable),
                *entry.quantiles.values(),
            )
            for entry in self.summary()
        ]  # fmt: skip
        return Table(
            f"Critical strengths of {len(self.values)} images (target '{self.target}', against "
            f"'{self.against}')",
            ("class", "images", "there already", "never", *ClassCrit.LEVELS),
            rows,
        )

    def summary(self) -> list[ClassCrit]:
        """Return one entry for each class that has images, by label."""
        order = self.values.argsort()
        order = order[self.labels[order].argsort(stable=True)]  # by label, then by value
        labels, counts = torch.unique_consecutive(self.labels[order], return_counts=True)
        groups = torch.split(self.values[order], counts.tolist())
        return [
            _class_crit(label, values.tolist())
            for label, values in zip(labels.tolist(), groups, strict=True)
        ]

    def strength_for(self, label: int, share: float) -> float:
        """Return the smallest strength by which `share` of the class's images have broken.

        An order statistic, not an interpolation. At this very strength the last of them is a tie,
        and an image may recover at a higher one, so evaluate the edit at the strength you choose.

        Raises:
            InputError: if the class has no image here, or the share is not in (0, 1].
        """
        values = self.values[self.labels == label]
        if not len(values) or not 0 < real(share, "share") <= 1:
            raise InputError(
                f"label {label} has {len(values)} images and share is {share}: give one of the "
                f"labels {present(self.labels)} and a share above 0, at most 1"
            )
        return float(values.sort().values[order_statistic(len(values), share)])


def _class_crit(label: int, ascending: list[float]) -> ClassCrit:
    count = len(ascending)
    return ClassCrit(
        label,
        count,
        # Ascending values have the zeros at their one end and the infinite ones at the other.
        bisect_right(ascending, 0.0) / count,
        (count - bisect_left(ascending, float("inf"))) / count,
        {
            name: ascending[order_statistic(count, share)]
            for name, share in ClassCrit.LEVELS.items()
        },
    )


def order_statistic(count: int, share: float) -> int:
    """Return where the order statistic of a share is among `count` ascending values."""
    # At the value there, at least the share has broken. Rounded before the ceiling is taken, as
    # 0.55 · 100 is a little more than 55.
    return min(count - 1, max(0, ceil(round(share * count, 9)) - 1))
