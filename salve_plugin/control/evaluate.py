"""How well a model, or only its head, labels images: by class, before and after an edit."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from salve_plugin.control.base import bare
from salve_plugin.control.decisions import check_threshold
from salve_plugin.control.solving import check_labels, two_sided
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import Labels
from salve_plugin.discover.recording.loader import labelled_batches
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular, percent
from salve_plugin.hooks import evaluating
from salve_plugin.images import run
from salve_plugin.modes import without_autocast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = 4096


DIGITS = 12
"""Decimals in which effects and harms are compared. They are differences of shares: to floating
point one image of a hundred, 1 - 0.99, is more than 0.01, and a bound of 0.01 would refuse what it
allows."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Tabular):
    """What was predicted for the images of each class.

    Attributes:
        confusion: number of images by (true class, predicted class).
    """

    confusion: Int64[Tensor, "classes classes"]

    @property
    def count(self) -> Int64[Tensor, " classes"]:
        """Number of images of each class."""
        return self.confusion.sum(1)

    @property
    def accuracy(self) -> Float64[Tensor, " classes"]:
        """Share of each class's images that are labelled rightly; NaN without images."""
        return self.confusion.diagonal().double() / self.count.double()

    @property
    def overall(self) -> float:
        """Share of all images that are labelled rightly."""
        return float(self.confusion.diagonal().sum()) / float(self.confusion.sum())

    def __repr__(self) -> str:
        """Say in one line how many images are labelled rightly."""
        images, classes = int(self.confusion.sum()), len(self.confusion)
        return (
            f"<Evaluation of {images} images in {classes} classes: {percent(self.overall)} right>"
        )

    def as_table(self) -> Table:
        """Return accuracy and most frequent mistake of each class that has images."""
        mistakes = self.confusion.clone().fill_diagonal_(0)
        rows = []
        for label, accuracy in enumerate(self.accuracy.tolist()):
            if not (count := int(self.count[label])):
                continue
            wrong = int(mistakes[label].argmax())
            share = int(mistakes[label, wrong]) / count
            mistake = f"class {wrong} ({percent(share)})" if share else "-"
            rows.append((str(label), count, percent(accuracy), mistake))
        images = int(self.confusion.sum())
        return Table(
            f"Accuracy {percent(self.overall)} of {images} images",
            ("class", "images", "accuracy", "most often taken for"),
            rows,
        )

    def figure(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> "Figure":
        """Draw the confusion matrix: for each true class, the share of each predicted one.

        Args:
            path: also write it there, in the format of the suffix (PNG without one).
            classes: names by class, such as `Activations.classes`.

        Raises:
            InputError: if matplotlib does not know the format, or names are not one for each class.
            WriteError: if the file cannot be written.
        """
        from salve_plugin.faces.evaluation import evaluation_figure

        return evaluation_figure(self, classes).written(path)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values; the accuracy of a class without images is None."""
        return {
            "overall": self.overall,
            "accuracy": [None if a != a else a for a in self.accuracy.tolist()],
            "count": self.count.tolist(),
            "confusion": self.confusion.tolist(),
        }


def accuracies(
    logits: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"]
) -> Float64[Tensor, " classes"]:
    """Return the accuracy of each class; NaN, 0 / 0, for one without images."""
    classes = logits.shape[1]
    right = torch.bincount(labels[logits.argmax(1) == labels], minlength=classes)
    return right.double() / torch.bincount(labels, minlength=classes).double()


def leads(logits: Float[Tensor, "images classes"], label: int) -> Float[Tensor, " images"]:
    """Return by how much a class's logit exceeds the best other one; negative where it loses."""
    rivals = logits.clone()
    rivals[:, label] = -torch.inf
    return logits[:, label] - rivals.amax(1)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any], *, threshold: float = 0.0) -> Evaluation:
    """Run a model over labelled images, in eval mode; its training modes are restored.

    Args:
        model: the bare or hooked model.
        loader: any iterable of (images, labels) batches; for the names of classes see `record`.
        threshold: of a classifier with one logit, which says class 1 above it and class 0 else.

    Raises:
        InputError: if the loader is empty, a label or a name is no class of the model, or the
            model does not take the images or returns something else than finite logits (images,
            classes).
        ReadError: if the data set cannot read an image.
    """
    network = bare(model)
    confusion: Tensor | None = None
    labels: Labels | None = None
    with evaluating(network):
        for batch in labelled_batches(loader, None):
            logits = run(network, batch.images, f"batch {batch.number}")
            check_logits(logits, len(batch.labels))
            check_threshold(threshold, logits.shape[1])
            logits = two_sided(logits, threshold)
            # How many classes there are, the first logits tell: any model will do, attached or not.
            if confusion is None:
                confusion = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.int64)
                labels = Labels.of(network, logits.shape[1], loader)
            assert labels is not None
            batch = labels.of_model(batch)
            check_labels(batch.labels, len(confusion))
            count_pairs(confusion, batch.labels, logits)
    assert confusion is not None  # labelled_batches refuses an empty loader
    return Evaluation(confusion)


def evaluate_head(
    weight: Tensor,
    bias: Tensor,
    acts: Activations | tuple[Tensor, Tensor],
    *,
    threshold: float = 0.0,
) -> Evaluation:
    """Evaluate a linear head on recorded inputs: far cheaper than the whole model.

    Args:
        weight: (classes, width), e.g. from `HookedModel.unembed` and `scaled_weight`.
        bias: (classes,).
        acts: a recording of the head's input, or (inputs (images, width), labels (images,)).
        threshold: of a head with one logit.

    Raises:
        InputError: if shapes do not fit, a label is no class of the head, a logit is not finite, or
            there are no images.
    """
    return evaluate_heads([weight], bias, acts, threshold=threshold)[0]


@without_autocast()
def evaluate_heads(
    weights: Iterable[Tensor],
    bias: Tensor,
    acts: Activations | tuple[Tensor, Tensor],
    *,
    threshold: float = 0.0,
) -> list[Evaluation]:
    """Evaluate several heads with the same bias in one pass over the inputs."""
    # In float32, as most models compute their logits: float64 could break a tie the other way.
    heads = [weight.float() for weight in weights]
    check_threshold(threshold, len(bias))
    # One logit decides between two classes, below its threshold and above it.
    n_classes = max(len(bias), 2)
    confusions = [torch.zeros(n_classes, n_classes, dtype=torch.int64) for _ in heads]
    seen = 0
    for x, labels in _rows(acts):
        if any(head.shape != (len(bias), x.shape[1]) for head in heads):
            raise InputError(
                f"heads of shape {[tuple(head.shape) for head in heads][:3]} with {len(bias)} "
                f"biases do not fit inputs of {x.shape[1]} features"
            )
        check_labels(labels, n_classes)
        for head, confusion in zip(heads, confusions, strict=True):
            logits = torch.addmm(bias.float(), x.float(), head.T)
            check_logits(logits, len(labels))
            count_pairs(confusion, labels, two_sided(logits, threshold))
        seen += len(x)
    if not seen:
        raise InputError("there are no images to evaluate")
    return [Evaluation(confusion) for confusion in confusions]


def _rows(acts: Activations | tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(acts, tuple):
        x, labels = acts
        if len(x) != len(labels):
            raise InputError(f"{len(x)} inputs, but {len(labels)} labels")
        if labels.ndim != 1 or labels.is_floating_point():
            raise InputError(
                f"labels are {labels.dtype}{list(labels.shape)}, class indices were expected, one "
                f"for each of {len(x)} inputs"
            )
        for start in range(0, len(x), _BATCH):
            yield x[start : start + _BATCH], labels[start : start + _BATCH]
        return
    for batch in acts.batches(_BATCH):
        yield batch.x, batch.labels


def count_pairs(confusion: Tensor, labels: Tensor, logits: Tensor) -> None:
    """Add images to a confusion by their label and the class of their largest logit."""
    # The place of each pair in the flattened confusion, so that one bincount adds up repeated
    # pairs; adding to an indexed view would count each pair once.
    # In 64 bits: class 200 of 1000 in the labels' own eight would be another one.
    pairs = labels.cpu().long() * len(confusion) + logits.argmax(1).cpu()
    confusion += torch.bincount(pairs, minlength=confusion.numel()).view_as(confusion)


def check_logits(logits: object, images: int) -> None:
    """Raise InputError unless these are finite logits (images, classes)."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != images:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"expected logits ({images}, classes) for {images} images, got {found}")
    if not bool(logits.isfinite().all()):
        raise InputError("logits are NaN or infinite; check the images and the model's weights")
