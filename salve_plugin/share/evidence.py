"""Critical strengths in an artifact: per image as tensors, per class as JSON.

Per image, infinity ("no strength does it") is a value like any other and safetensors holds it.
JSON has no infinity: there a quantile is null, and the share of such images is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from salve_plugin.control.critical import AlphaCrit
from salve_plugin.errors import InputError
from salve_plugin.store.record import Index, Record, Sha256

TENSORS = {
    "values": torch.float64,
    "linear": torch.float64,
    "labels": torch.int64,
    "predicted": torch.int64,
}
"""The tensors of critical strengths, each (images,)."""
_UNUSED_FRACTION = 0.5  # `alpha_crit`'s default, where the target does not depend on it

Share = Annotated[float, Meta(ge=0, le=1)]
Level = Literal["0.1", "0.25", "0.5", "0.75", "0.9", "0.95"]


@dataclass(frozen=True)
class ClassSummary(Record):
    """The images of one class.

    Attributes:
        already: share of images at the target without any edit (value 0).
        count: number of images.
        label: the class.
        quantiles: order statistics of all its images; null for infinity.
        unreachable: share of images that no strength brings there (infinity).
    """

    already: Share
    count: Index
    label: Index
    quantiles: Annotated[dict[Level, Annotated[float, Meta(ge=0)] | None], Meta(min_length=6)]
    unreachable: Share


@dataclass(frozen=True)
class CritSummary(Record):
    """The smallest strength at which each image reaches the target, summarized by class.

    Attributes:
        against: whose logit: of the image's label or of the predicted class.
        classes: their images.
        family: of the edits that they are the strengths of, see `salve_plugin.Edit.family`.
        fraction: for target `fraction`, of the unedited logit.
        target: zero: the logit reaches 0. fraction: it falls to a fraction. flip: another class's
            logit reaches it.
        network: of the model that was asked, edits on its hidden layers included; null if unknown.
    """

    against: Literal["label", "predicted"]
    classes: Annotated[list[ClassSummary], Meta(max_length=1_000_000)]
    family: Sha256
    fraction: Share | None
    network: Sha256 | None
    target: Literal["flip", "fraction", "zero"]


def tensors(critical: AlphaCrit) -> dict[str, Tensor]:
    """Return the values per image by name.

    Raises:
        InputError: as for `check`, or if a threshold other than 0 would be lost.
    """
    if critical.threshold:
        raise InputError(
            f"critical strengths at the threshold {critical.threshold} are not stored, since their "
            "file says nothing of thresholds; take those at 0, or leave them out"
        )
    values: dict[str, Tensor] = {name: getattr(critical, name) for name in TENSORS}
    check(values)
    return values


def check(values: Mapping[str, Tensor]) -> None:
    """Raise unless the values are strengths and the labels are classes.

    Args:
        values: the tensors by name.

    Raises:
        InputError: if a tensor is missing or unknown, of another type or length, a strength is
            negative or NaN, or a label is negative.
    """
    if set(values) != set(TENSORS):
        raise InputError(f"critical strengths are {sorted(TENSORS)}; found {sorted(values)}")
    # Not its length: it may have no axis at all.
    count = values["values"].numel()
    for name, dtype in TENSORS.items():
        tensor = values[name]
        if tensor.dtype != dtype or tensor.shape != (count,):
            raise InputError(
                f"'alpha_crit.{name}' is {tensor.dtype}{list(tensor.shape)}; expected {dtype} of "
                f"shape [{count}], one entry an image"
            )
        if not bool((tensor >= 0).all()):  # also catches NaN; infinity is allowed
            raise InputError(f"'alpha_crit.{name}' holds NaN or a negative number")
    # Both are 0 for an image that is at the target without any edit, and only then.
    if not bool(((values["values"] == 0) == (values["linear"] == 0)).all()):
        raise InputError("'alpha_crit.values' and '.linear' are not 0 for the same images")


def rebuild(
    said: CritSummary | None, parts: Mapping[str, Tensor], labels: Sequence[str] | None
) -> AlphaCrit | None:
    """Return the critical strengths from the manifest's part, the tensors and the class names.

    Raises:
        InputError: as for `check`, or if there are tensors without a summary.
    """
    if said is None and not parts:
        return None
    if said is None:
        raise InputError(f"critical strengths {sorted(parts)} have no summary")
    check(parts)
    return AlphaCrit(
        **parts,
        target=said.target,
        fraction=_UNUSED_FRACTION if said.fraction is None else said.fraction,
        against=said.against,
        family=said.family,
        classes=None if labels is None else tuple(labels),
        network=said.network,
        threshold=0.0,
    )
