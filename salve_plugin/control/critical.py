r"""The critical strength of every recorded image, of edits at the head's input."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.applied_edits import status
from salve_plugin.control.crit_summary import Summarized
from salve_plugin.control.decisions import Decisions
from salve_plugin.control.edit import Edit
from salve_plugin.control.networks import Networks
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.operators.base import real
from salve_plugin.control.solving import check_labels
from salve_plugin.discover.recording.activations import Activations, Batch
from salve_plugin.errors import EditStateError, InputError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.integers import whole
from salve_plugin.kinds import several
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import HEAD_INPUT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CritGoal = Literal["zero", "fraction", "flip"]
Against = Literal["label", "predicted"]
_BATCH = 1024


@dataclass(frozen=True, eq=False)
class AlphaCrit(Summarized):
    """The critical strength of every image.

    Attributes:
        values: exact, (images,); 0: at or below the target already; inf: never.
        linear: the paper's closed form for the same target, (images,); of a low-rank map, which is
            a straight line, the exact strength without a limit.
        labels: class of each image, (images,).
        predicted: class that the unedited model predicts, (images,).
        target: "zero", "fraction" or "flip".
        fraction: of the logit, for target "fraction".
        against: whose logit: the image's own "label" or the "predicted" class.
        family: `Edit.family` of the edits that these strengths are of: all that differ from the one
            asked about in strength only.
        classes: class names, if known.
        network: of the model that was asked, as it was then; None if it is not known.
        threshold: of a classifier with one logit, where its decision turns.
    """

    __repr__ = Summarized.__repr__

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
    threshold: float = 0.0

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

    def figure(
        self, path: str | os.PathLike[str] | None = None, *, edit: Edit | None = None
    ) -> "Figure":
        """Draw the share of each class's images that have reached the target at a strength.

        With more than six classes, those that the edit concerns most have a line of their own,
        without an edit those that are reached first.

        Args:
            path: also write it there, in the format of the suffix (PNG without one).
            edit: marks its strength.

        Raises:
            InputError: if there is no image, or matplotlib does not know the format.
            WriteError: if the file cannot be written.
        """
        from salve_plugin.faces.alpha_crit import alpha_crit_figure

        return alpha_crit_figure(self, edit).written(path)


def alpha_crit(
    hooked: HookedModel,
    edit: Edit,
    acts: Activations,
    *,
    target: CritGoal = "zero",
    fraction: float = 0.5,
    against: Against = "label",
    threshold: float = 0.0,
    classes: Iterable[int] | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> AlphaCrit:
    r"""Return the exact critical strength of `edit`'s directions and rows for each recorded image.

    The edit's own strength plays no part. The head is taken as it is, so edits that are applied
    count as part of the model. All else must be as it was when the activations were recorded.
    Activations are streamed; only the results stay in memory.

    A gate's strength is its $\alpha$. A low-rank map's is the amount $1-\lambda$: at 0 nothing is
    changed, at 1 the reading is replaced by its offset, beyond that overshot, up to 1000. Both are
    what `Edit.with_strength` takes. A classifier with one logit has the classes 0, at or below the
    threshold, and 1; how far the logit is on a class's side of the threshold counts as its logit.
    Where images have several labels (multi-hot), the images with one label are asked about,
    `classes=[label]`, and `target="zero"` is where its own decision turns.

    Args:
        hooked: the attached model.
        edit: whose directions, mode and rows are asked about; a gate (of one latent or several) or
            a low-rank map at the head's input. Other sites: `search_alpha_crit`.
        acts: recorded head inputs, one row an image.
        target: "zero": the logit reaches 0 (the paper's definition); "fraction": it falls to
            `fraction` of its value; "flip": another class's logit reaches it.
        fraction: for target "fraction", in [0, 1).
        against: whose logit, the image's label's or the predicted class's.
        threshold: of a classifier with one logit.
        classes: only images with these labels; None means all.
        on_base_mismatch: "warn" goes on with a recording of another network, such as that which
            the model was fine-tuned from: the strengths are then exact for neither.

    Raises:
        BaseMismatchError: if the activations are not those of the model as it is.
        InputError: if edit or activations belong to another site than the head's input, if the edit
            has no strength, an option is unknown, or no image is left.
        EditStateError: if the edit itself is applied.
    """
    (crit,) = alpha_crits(
        hooked, [edit], acts, target=target, fraction=fraction, against=against,
        threshold=threshold, classes=classes, on_base_mismatch=on_base_mismatch,
    )  # fmt: skip
    return crit


@without_autocast()
def alpha_crits(
    hooked: HookedModel,
    edits: Sequence[Edit],
    acts: Activations,
    *,
    target: CritGoal = "zero",
    fraction: float = 0.5,
    against: Against = "label",
    threshold: float = 0.0,
    classes: Iterable[int] | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> tuple[AlphaCrit, ...]:
    """Return what `alpha_crit` does for each of several edits, such as one for each latent.

    The recording is read, and its logits are computed, once for all.
    `torch.stack([crit.values for crit in crits])` is the matrix (edits, images).

    Raises:
        SalveError: as `alpha_crit`, for any of the edits; InputError if there is none.
    """
    check_attached(hooked)
    _check_options(edits, acts, target, fraction, against)
    _check_not_applied(hooked, edits)
    networks = Networks(hooked, on_base_mismatch)
    networks.check_present("the recording", acts.network_sha256)
    return _strengths(
        hooked, edits, acts, networks.present, target, fraction, against, threshold, classes
    )


def flip_strengths(hooked: HookedModel, edit: Edit, acts: Activations, label: int) -> AlphaCrit:
    """Return what `alpha_crit` does for one class and target "flip", of what was checked before.

    Raises:
        InputError: if no image has the label.
    """
    (crit,) = _strengths(hooked, [edit], acts, None, "flip", 0.5, "label", 0.0, [label])
    return crit


def _strengths(
    hooked: HookedModel,
    edits: Sequence[Edit],
    acts: Activations,
    network: str | None,
    target: CritGoal,
    fraction: float,
    against: Against,
    threshold: float,
    classes: Iterable[int] | None,
) -> tuple[AlphaCrit, ...]:
    # All edits are at the head's input, so that any one's site is that of all.
    decisions = Decisions.of(hooked, edits[0].site, threshold)
    # Once: what is given may be a generator, which the message below would find empty.
    named = None if classes is None else _labels(classes)
    # No image has a label that the classifier has no row for, and a tensor may not hold it.
    rows = range(len(decisions.weight))
    wanted = None if named is None else torch.tensor([*filter(rows.__contains__, named)]).long()
    if acts.labelling == "multi-hot":
        _check_one_label(named, target, against)
    marks: list[tuple[Tensor, Tensor]] = []
    # By edit and batch; the activations of all batches are never in memory together.
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in edits]
    for batch in acts.batches(_BATCH):
        x, labels = _asked(batch, wanted)
        if not len(x):
            continue
        check_labels(labels, len(decisions.weight))
        logits = decisions.logits(x)
        predicted = logits.argmax(1)
        asked = labels if against == "label" else predicted
        for edit, own in zip(edits, parts, strict=True):
            if target == "flip":
                own.append(decisions.flips(edit, x, logits, asked))
            else:
                share = fraction if target == "fraction" else 0.0
                own.append(decisions.falls(edit, x, logits, asked, share))
        marks.append((labels, predicted))
    if not marks:
        raise InputError(f"no recorded image has a label among {named}")
    labels, predicted = (torch.cat(column) for column in zip(*marks, strict=True))
    crits = []
    for edit, own in zip(edits, parts, strict=True):
        values, linear = (torch.cat(column) for column in zip(*own, strict=True))
        crits.append(
            AlphaCrit(
                values, linear, labels, predicted, target, fraction, against, edit.family,
                acts.classes, network, decisions.threshold,
            )
        )  # fmt: skip
    return tuple(crits)


def _labels(classes: Iterable[int]) -> list[int]:
    given = several(classes, "classes", "a list of class indices, e.g. [3]")
    return sorted({whole(label, "a class") for label in given})


def _asked(batch: Batch, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the rows that are asked about, and whose logit is for each."""
    if batch.annotation.ndim == 2 and wanted is not None:
        if not len(wanted):  # it has no row: that no batch has such an image is said at the end
            return batch.x[:0], wanted
        (label,) = wanted.tolist()
        x = batch.x[batch.annotation[:, label].bool()]
        return x, wanted.expand(len(x))
    x, labels = batch.x, batch.labels.long()
    if wanted is None:
        return x, labels
    keep = torch.isin(labels, wanted)
    return x[keep], labels[keep]


def _check_one_label(named: list[int] | None, target: CritGoal, against: Against) -> None:
    if named is None or len(named) != 1 or target == "flip" or against != "label":
        raise InputError(
            "images of this recording have several labels each, and no class overtakes another: "
            "alpha_crit asks about one of them, classes=[label], whose decision turns where its "
            "own logit reaches 0, target='zero' (or 'fraction'), against='label'"
        )


def _check_options(
    edits: Sequence[Edit], acts: Activations, target: CritGoal, fraction: float, against: Against
) -> None:
    if not isinstance(edits, Sequence) or not edits:
        raise InputError(f"critical strengths are of at least one edit; got {edits!r:.200}")
    check_goal(target, fraction, against)
    wrong = [type(edit).__name__ for edit in edits if not isinstance(edit, Edit)]
    if wrong or not isinstance(acts, Activations):
        raise InputError(
            f"critical strengths are of edits and a recording; got {wrong or 'edits'} and "
            f"{type(acts).__name__}: pass salve.suppress(...) and salve.record(...)"
        )
    for edit in edits:
        if edit.site.name != HEAD_INPUT or acts.site.name != HEAD_INPUT:
            raise InputError(
                f"the critical strength needs the head's input '{HEAD_INPUT}', where the logit is "
                f"a known function of the edit; the edit is at '{edit.site.name}', the activations "
                f"are of '{acts.site.name}'. search_alpha_crit searches on the forward pass, at "
                "any site"
            )
        if isinstance(edit.operator, LowRankUpdate):
            raise InputError(
                f"edit {edit.digest[:12]} is a low-rank update, which has no strength; give a gate "
                "or a low-rank map"
            )


def check_goal(target: object, fraction: float, against: object) -> None:
    """Refuse what is no goal.

    Raises:
        InputError: naming the option.
    """
    if target not in get_args(CritGoal) or against not in get_args(Against):
        raise InputError(
            f"target is one of {list(get_args(CritGoal))} and against one of "
            f"{list(get_args(Against))}; got {target!r} and {against!r}"
        )
    if not 0 <= real(fraction, "fraction") < 1:
        raise InputError(f"fraction {fraction} is not in [0, 1)")


def _check_not_applied(hooked: HookedModel, edits: Sequence[Edit]) -> None:
    # At another strength it may be on: then it is part of the model that is asked about.
    applied = {entry.edit for entry in status(hooked).applied}
    for edit in edits:
        if edit in applied:
            raise EditStateError(
                f"edit {edit.digest[:12]} is applied, so the head is no longer the one asked "
                "about; revert it first"
            )
