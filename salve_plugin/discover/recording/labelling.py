"""What a loader says of its images: one class, several, or a number that is to be predicted."""

from typing import Literal, get_args

import torch
from torch import Tensor

from salve_plugin.errors import InputError

Labelling = Literal["class", "multi-hot", "target"]
"""A class index an image; 0 or 1 for each image and class; a regression's target an image."""


def check_labelling(labelling: str | None) -> None:
    """Check a choice before anything is computed.

    Raises:
        InputError: unless it is one of `Labelling`, or None.
    """
    if labelling is not None and labelling not in get_args(Labelling):
        raise InputError(f"labels is one of {list(get_args(Labelling))} or None, not {labelling!r}")


def tensor_name(labelling: Labelling) -> str:
    """Return the name of the tensor in a shard: a reader of classes must not find targets there."""
    return "targets" if labelling == "target" else "labels"


def labelling_of(annotation: Tensor) -> Labelling:
    """Return what the annotations of a recording are, see `annotations`."""
    if annotation.dtype == torch.uint8:
        return "multi-hot"
    return "target" if annotation.is_floating_point() else "class"


def indices_in(annotation: Tensor) -> Tensor:
    """Return annotations that are class indices.

    Raises:
        InputError: if they are not; it says what is possible without.
    """
    labelling = labelling_of(annotation)
    if labelling == "class":
        return annotation
    if labelling == "multi-hot":
        raise InputError(
            "the images of this recording have several labels or none (multi-hot), and one class "
            "an image is needed here. Ask about one label: profile(dictionary, acts), "
            "alpha_crit(..., target='zero', classes=[label]), find_concept(acts, "
            "acts.multi_hot()[:, label]); evaluate_multi_label(model, loader) evaluates"
        )
    raise InputError(
        "the images of this recording have a target each (a regression), and one class an image is "
        "needed here. What needs no class works: fit, LayerGradFam, quality without hooked=, "
        "find_concept and profile(..., attribute=(acts.targets() > limit).long())"
    )


def annotations(
    labels: Tensor, number: int, several_logits: bool, wanted: Labelling | None
) -> Tensor:
    """Return labels in the form that a recording keeps, from what losses take.

    Class indices are int64 (batch,); a single column is one logit's, 0 or 1, and of one-hot rows
    the index is taken. Multi-hot rows are uint8 (batch, classes), targets float64 (batch,).

    Args:
        labels: of a batch, on the CPU.
        number: of the batch, for messages.
        several_logits: whether the model is known to have several: then what belongs to one logit
            (truth values, floats, a column) is refused.
        wanted: what they must be; None takes them for what they look like.

    Raises:
        InputError: if they are not what is wanted.
    """
    # Zeros and ones may be indices of two classes, one logit's answers, or rows of several: the
    # shape tells which.
    truth = bool(((labels == 0) | (labels == 1)).all())
    # The form that binary cross-entropy takes.
    if labels.ndim == 2 and labels.shape[1] == 1 and not several_logits:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] > 1 and truth and len(labels) and wanted != "target":
        counts = labels.long().sum(1)
        one_hot = bool((counts == 1).all())
        if wanted == "multi-hot" or (wanted is None and not one_hot):
            return labels.to(torch.uint8)
        if one_hot:
            return labels.long().argmax(1)
        raise InputError(
            f"labels of batch {number} name up to {int(counts.max())} of {labels.shape[1]} classes "
            "an image, and one class an image is needed here. A multi-label model is recorded "
            "with record(..., labels='multi-hot') and evaluated by evaluate_multi_label; one "
            "column, hot[:, column], is a grouping of the images"
        )
    if wanted == "multi-hot":
        raise InputError(
            f"labels of batch {number} are {labels.dtype}{list(labels.shape)}; expected multi-hot "
            "rows (batch, classes) of 0 and 1"
        )
    indices = truth and not several_logits
    if wanted == "target" or (labels.is_floating_point() and not indices and wanted is None):
        return _targets(labels, number, several_logits)
    # Cut to whole numbers, a regression's targets would pass for classes.
    if not indices and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise InputError(
            f"labels of batch {number} are {labels.dtype}; class indices are needed here, or 0 and "
            "1 for one logit. A regression is recorded with record(..., labels='target'); to ask "
            "about classes, group the images: labels = (target > limit).long()"
        )
    return labels.long()


def _targets(labels: Tensor, number: int, several_logits: bool) -> Tensor:
    if several_logits or labels.ndim != 1 or not bool(labels.isfinite().all()):
        why = "the model has several outputs" if several_logits else "expected are finite (batch,)"
        raise InputError(
            f"labels of batch {number} are {labels.dtype}{list(labels.shape)}, taken for a "
            f"regression's targets: {why}. Targets are for a model with one output; class indices "
            "are integers (batch,): to group the images, labels = (target > limit).long()"
        )
    return labels.double()
