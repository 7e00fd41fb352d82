"""How well a multi-label model labels images: each class is a decision of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import nn

from salve_plugin.control.base import bare
from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.operators.base import real
from salve_plugin.discover.recording.labels import Labels
from salve_plugin.discover.recording.loader import labelled_batches
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular, percent
from salve_plugin.hooks import evaluating
from salve_plugin.images import run


@dataclass(frozen=True, eq=False, repr=False)
class MultiLabelEvaluation(Tabular):
    """What was decided about each class of images that may belong to several.

    A class is predicted where its logit is above the threshold, whatever the others are. Accuracy
    is the share of such decisions that are right, over all images, those without the class too: of
    a rare class it is high for a model that never predicts it, so look at `sensitivity` beside it.

    Attributes:
        counts: number of images by (class, has it, it is predicted).
        classes: class names, if known.
        threshold: of every logit.
    """

    counts: Int64[torch.Tensor, "classes 2 2"]
    classes: tuple[str, ...] | None = None
    threshold: float = 0.0

    @property
    def count(self) -> Int64[torch.Tensor, " classes"]:
        """Number of images that have each class."""
        return self.counts[:, 1].sum(1)

    @property
    def accuracy(self) -> Float64[torch.Tensor, " classes"]:
        """Share of all images about which each class is decided rightly."""
        right = self.counts[:, 0, 0] + self.counts[:, 1, 1]
        return right.double() / self.counts.sum((1, 2)).double()

    @property
    def sensitivity(self) -> Float64[torch.Tensor, " classes"]:
        """Share of the images with each class for which it is predicted; NaN without any."""
        return self.counts[:, 1, 1].double() / self.count.double()

    @property
    def specificity(self) -> Float64[torch.Tensor, " classes"]:
        """Share of the images without each class for which it is not; NaN without any."""
        return self.counts[:, 0, 0].double() / self.counts[:, 0].sum(1).double()

    @property
    def overall(self) -> float:
        """Share of all decisions that are right (1 minus the Hamming loss)."""
        return float(self.accuracy.mean())

    def __repr__(self) -> str:
        """Say in one line how many decisions are right."""
        images, classes = int(self.counts[0].sum()), len(self.counts)
        right = percent(self.overall)
        return f"<MultiLabelEvaluation of {images} images, {classes} classes: {right} right>"

    def as_table(self) -> Table:
        """Return each class's accuracy, sensitivity and specificity."""
        columns = (self.accuracy, self.sensitivity, self.specificity)
        shares = zip(*(map(percent, column.tolist()) for column in columns), strict=True)
        rows = [
            (self.classes[label] if self.classes else str(label), count, *row)
            for label, (count, row) in enumerate(zip(self.count.tolist(), shares, strict=True))
        ]
        return Table(
            f"{percent(self.overall)} of the decisions about {int(self.counts[0].sum())} images "
            "are right",
            ("class", "images with it", "accuracy", "sensitivity", "specificity"),
            rows,
        )

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values; the shares of a class that no image has, or all, are None."""

        def plain(shares: torch.Tensor) -> list[float | None]:
            return [None if share != share else share for share in shares.tolist()]

        return {
            "overall": self.overall,
            "threshold": self.threshold,
            "accuracy": plain(self.accuracy),
            "sensitivity": plain(self.sensitivity),
            "specificity": plain(self.specificity),
            "counts": self.counts.tolist(),
        }


@torch.no_grad()
def evaluate_multi_label(
    model: nn.Module, loader: Iterable[Any], *, threshold: float = 0.0
) -> MultiLabelEvaluation:
    """Run a multi-label model over labelled images, in eval mode; its training modes are restored.

    Args:
        model: the bare or hooked model; it returns a logit for each class.
        loader: any iterable of (images, multi-hot labels (batch, classes)) batches.
        threshold: of every logit; 0 is a probability of one half.

    Raises:
        InputError: if the loader is empty, labels are not multi-hot or have not a column for each
            logit, the threshold is no number, or the model does not take the images or returns
            something else than finite logits (images, classes).
        ReadError: if the data set cannot read an image.
    """
    if not isfinite(real(threshold, "threshold")):
        raise InputError(f"threshold {threshold} is to be a finite number")
    network = bare(model)
    counts: torch.Tensor | None = None
    labels: Labels | None = None
    with evaluating(network):
        for batch in labelled_batches(loader, None, labelling="multi-hot"):
            logits = run(network, batch.images, f"batch {batch.number}")
            check_logits(logits, len(batch.labels))
            if counts is None or labels is None:
                counts = torch.zeros(logits.shape[1], 2, 2, dtype=torch.int64)
                labels = Labels.of(network, logits.shape[1], loader)
            # By the columns of the model: a data set may name the same classes in another order.
            has = labels.of_model(batch).labels.bool()
            if has.shape != logits.shape:
                raise InputError(
                    f"multi-hot labels of batch {batch.number} have {has.shape[1]} columns, and "
                    f"the model has {logits.shape[1]} outputs: column i is for output i"
                )
            # Above and not at the threshold, as a single logit is decided too.
            said = (logits > threshold).cpu()
            for side in (0, 1):
                for prediction in (0, 1):
                    counts[:, side, prediction] += ((has == side) & (said == prediction)).sum(0)
    assert counts is not None  # labelled_batches refuses an empty loader
    assert labels is not None
    return MultiLabelEvaluation(counts, labels.classes, threshold)
