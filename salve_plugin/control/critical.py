r"""The critical strength of every recorded image, and its summary by class."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.applied_edits import status
from salve_plugin.control.edit import Edit
from salve_plugin.control.flips import flip
from salve_plugin.control.networks import Networks
from salve_plugin.control.solving import check_labels, present, solve
from salve_plugin.control.strength import (
    critical_flip_strength,
    critical_strength,
    critical_strength_linear,
)  # fmt: skip
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import EditStateError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import HEAD_INPUT

CritGoal = Literal["zero", "fraction", "flip"]
Against = Literal["label", "predicted"]
_BATCH = 4096


@dataclass(frozen=True, eq=False)
class ClassCrit:
    """The critical strengths of one class in a few numbers.

    Attributes:
        label: class index.
        count: its images.
        already: share that is at or below the target without any edit.
        unreachable: share that no strength brings there.
        quantiles: (10 %, 25 %, 50 %, 75 %, 90 %, 95 %) of all its images; infinite where the order
            statistic is.
    """

    label: int
    count: int
    already: float
    unreachable: float
    quantiles: tuple[float, ...]

    LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values; an infinite quantile is None."""
        finite = [None if value == float("inf") else value for value in self.quantiles]
        return {
            "label": self.label,
            "count": self.count,
            "already": self.already,
            "unreachable": self.unreachable,
            "quantiles": dict(zip(map(str, self.LEVELS), finite, strict=True)),
        }


@dataclass(frozen=True, eq=False)
class AlphaCrit:
    """The critical strength of every image.

    Attributes:
        values: exact, (images,); 0: at or below the target already; inf: never.
        linear: the paper's closed form for the same target, (images,).
        labels: class of each image, (images,).
        predicted: class that the unedited model predicts, (images,).
        target: "zero", "fraction" or "flip".
        fraction: of the logit, for target "fraction".
        against: whose logit: the image's own "label" or the "predicted" class.
        family: `Edit.family` of the edits that these strengths are of: all that differ from the one
            asked about in strength only.
        classes: class names, if known.
        network: of the model that was asked, as it was then; None if it is not known.
    """

    values: Float64[Tensor, " images"]
    linear: Float64[Tensor, " images"]
    labels: Int64[Tensor, " images"]
    predicted: Int64[Tensor, " images"]
    target: CritGoal
    fraction: float
    against: Against
    family: str
    classes: tuple[str, ...] | None = None
    network: str | None = None

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
        if not len(values) or not 0 < share <= 1:
            raise InputError(
                f"label {label} has {len(values)} images and share is {share}: give one of the "
                f"labels {present(self.labels)} and a share above 0, at most 1"
            )
        return float(values.sort().values[_position(len(values), share)])

    def to_json(self) -> dict[str, object]:
        """Return the summary as plain JSON values."""
        return {
            "target": self.target,
            "fraction": self.fraction if self.target == "fraction" else None,
            "against": self.against,
            "family": self.family,
            "network": self.network,
            "classes": [entry.to_json() for entry in self.summary()],
        }


def alpha_crit(
    hooked: HookedModel,
    edit: Edit,
    acts: Activations,
    *,
    target: CritGoal = "zero",
    fraction: float = 0.5,
    against: Against = "label",
    classes: Iterable[int] | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> AlphaCrit:
    """Return the exact critical strength of `edit`'s directions and rows for each recorded image.

    The edit's own strength plays no part. The head is taken as it is, so edits that are applied
    count as part of the model. All else must be as it was when the activations were recorded.
    Activations are streamed; only the results stay in memory.

    Args:
        hooked: the attached model.
        edit: whose directions, mode and rows are asked about; a gate at the head.
        acts: recorded head inputs, one row an image.
        target: "zero": the logit reaches 0 (the paper's definition); "fraction": it falls to
            `fraction` of its value; "flip": another class's logit reaches it.
        fraction: for target "fraction", in [0, 1).
        against: whose logit, the image's label's or the predicted class's.
        classes: only images with these labels; None means all.
        on_base_mismatch: "warn" goes on with a recording of another network, such as that which
            the model was fine-tuned from: the strengths are then exact for neither.

    Raises:
        BaseMismatchError: if the activations are not those of the model as it is.
        InputError: if edit or activations belong to another site than the head's input, if the edit
            is no gate, an option is unknown, or no image is left.
        EditStateError: if the edit itself is applied.
    """
    _check_options(edit, acts, target, fraction, against)
    _check_not_applied(hooked, edit)
    networks = Networks(hooked, on_base_mismatch)
    networks.check_present("the recording", acts.network_sha256)
    return strengths_of(
        hooked, edit, acts, networks.present,
        target=target, fraction=fraction, against=against, classes=classes,
    )  # fmt: skip


def strengths_of(
    hooked: HookedModel,
    edit: Edit,
    acts: Activations,
    network: str | None,
    *,
    target: CritGoal,
    fraction: float = 0.5,
    against: Against = "label",
    classes: Iterable[int] | None = None,
) -> AlphaCrit:
    """Return what `alpha_crit` does, of arguments that were checked before.

    Args:
        hooked: as there, and so are the others.
        edit: whose strengths.
        acts: of the model as it is.
        network: of the model as it is, to be noted.
        target: as there.
        fraction: as there.
        against: as there.
        classes: as there.

    Raises:
        InputError: if no image is left.
    """
    weight, bias = (values.double().cpu() for values in hooked.unembed(edit.site))
    wanted = None if classes is None else torch.tensor(sorted(classes))
    parts: list[tuple[Tensor, ...]] = []
    for batch in acts.batches(_BATCH):
        x, labels = batch.x, batch.labels.long()
        if wanted is not None:
            keep = torch.isin(labels, wanted)
            x, labels = x[keep], labels[keep]
        if not len(x):
            continue
        check_labels(labels, len(weight))
        logits = torch.addmm(bias, x.double(), weight.T)
        predicted = logits.argmax(1)
        asked = labels if against == "label" else predicted
        found = _of_batch(weight, bias, edit, x, asked, logits, target, fraction)
        parts.append((*found, labels, predicted))
    if not parts:
        raise InputError(f"no recorded image has a label among {classes}")
    values, linear, labels, predicted = (torch.cat(column) for column in zip(*parts, strict=True))
    return AlphaCrit(
        values, linear, labels, predicted, target, fraction, against, edit.family, acts.classes,
        network,
    )  # fmt: skip


def _of_batch(
    weight: Tensor,
    bias: Tensor,
    edit: Edit,
    x: Tensor,
    asked: Tensor,
    logits: Tensor,
    target: CritGoal,
    fraction: float,
) -> tuple[Tensor, Tensor]:
    gate = edit.gate
    if target == "flip":
        return flip(weight, bias, gate.reach, x, asked, edit.rows, gate.mode)
    goal = torch.zeros(len(x), dtype=torch.float64)
    if target == "fraction":
        goal = fraction * logits.gather(1, asked[:, None])[:, 0]
    edited = torch.zeros(len(weight), dtype=torch.bool)
    edited[slice(None) if edit.rows is None else torch.tensor(edit.rows)] = True
    # One problem for all labels: the contributions themselves take the place of activations.
    terms = x.double() * weight[asked]
    moves = edited[asked, None]
    height = bias[asked] - goal + (terms * ~moves).sum(1)
    return solve(
        terms.new_ones(1, terms.shape[1]), gate.reach, terms * moves, height, gate.mode, None
    )


def _class_crit(label: int, ascending: list[float]) -> ClassCrit:
    count = len(ascending)
    return ClassCrit(
        label,
        count,
        bisect_right(ascending, 0.0) / count,
        (count - bisect_left(ascending, float("inf"))) / count,
        tuple(ascending[_position(count, share)] for share in ClassCrit.LEVELS),
    )


def _position(count: int, share: float) -> int:
    """Return where the order statistic of a share is among `count` ascending values."""
    return min(count - 1, max(0, int(-(-share * count // 1)) - 1))


def _check_options(
    edit: Edit, acts: Activations, target: CritGoal, fraction: float, against: Against
) -> None:
    if edit.site.name != HEAD_INPUT or acts.site.name != HEAD_INPUT:
        raise InputError(
            f"the critical strength needs the head's input '{HEAD_INPUT}', where the logit is a "
            f"known function of the edit; the edit is at '{edit.site.name}', the activations are "
            f"of '{acts.site.name}'"
        )
    if target not in get_args(CritGoal) or against not in get_args(Against):
        raise InputError(
            f"target is one of {list(get_args(CritGoal))} and against one of "
            f"{list(get_args(Against))}; got {target!r} and {against!r}"
        )
    if not 0 <= fraction < 1:
        raise InputError(f"fraction {fraction} is not in [0, 1)")


def _check_not_applied(hooked: HookedModel, edit: Edit) -> None:
    if any(entry.edit == edit for entry in status(hooked).applied):
        raise EditStateError(
            f"edit {edit.digest[:12]} is applied, so the head is no longer the one asked about; "
            "revert it first"
        )


__all__ = [
    "AlphaCrit", "ClassCrit", "alpha_crit", "critical_flip_strength",
    "critical_strength", "critical_strength_linear",
]  # fmt: skip
