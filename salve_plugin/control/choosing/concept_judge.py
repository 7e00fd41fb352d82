"""Judging what becomes of decisions about a concept when the head is changed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.choosing.balanced_head import refitted_biases
from salve_plugin.control.choosing.candidate import Candidate
from salve_plugin.control.choosing.goals import RemoveConcept, RemoveShortcut
from salve_plugin.control.choosing.groups import Groups
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.edit import Edit
from salve_plugin.control.making import edit_at
from salve_plugin.control.operators import LowRankMap, LowRankUpdate
from salve_plugin.control.provenance import Provenance


@dataclass(frozen=True, eq=False)
class HeadChange:
    r"""A change of all rows of a head: $W + A B^T$, b + d.

    Attributes:
        left: A, (classes, rank).
        right: B, (width, rank).
        shift: d, (classes,).
        is_control: whether it is what a good edit has to beat.
        is_whole: whether it is tried as it is: not for some rows, nor with its biases fitted again.
        is_null: whether it is measured for what chance does, and never taken.
    """

    left: Float64[Tensor, "classes rank"]
    right: Float64[Tensor, "width rank"]
    shift: Float64[Tensor, " classes"]
    is_control: bool = False
    is_whole: bool = False
    is_null: bool = False

    @classmethod
    def of_map(
        cls, weight: Float64[Tensor, "classes width"], eraser: LowRankMap, *,
        is_control: bool = False,
    ) -> "HeadChange":  # fmt: skip
        r"""Return what a map of its input makes of a head: $-(WU)V^T$ and $WUc$."""
        read_by = weight @ eraser.write.double()
        shift = read_by @ eraser.offset.double()
        return cls(-read_by, eraser.read.double(), shift, is_control)

    @classmethod
    def to(
        cls, head: JudgedHead, weight: Float64[Tensor, "classes width"], bias: Tensor
    ) -> "HeadChange":
        """Return the change that makes of a head another one."""
        return cls.by(weight - head.weight.double(), bias - head.bias.double())

    @classmethod
    def by(cls, change: Float64[Tensor, "classes width"], shift: Tensor) -> "HeadChange":
        """Return the change that adds a matrix and a bias."""
        # As a product, which is what an update stores. Its rank is at most the number of classes.
        left, sizes, right = torch.linalg.svd(change, full_matrices=False)
        return cls(left * sizes, right.T, shift)

    @classmethod
    def nothing(cls, head: JudgedHead) -> "HeadChange":
        """Return no change."""
        classes, width = head.weight.shape
        empty = torch.zeros(max(classes, width), 0, dtype=torch.float64)
        return cls(empty[:classes], empty[:width], torch.zeros(classes, dtype=torch.float64))


class ConceptJudge:
    """Makes updates of the head and judges them on the concept's images."""

    def __init__(
        self, head: JudgedHead, goal: RemoveConcept | RemoveShortcut, groups: Groups,
        reference: JudgedHead,
    ) -> None:  # fmt: skip
        """Keep what candidates are made of, and the reference that they are compared with.

        Args:
            head: with the inputs that it gets once all other edits are in place.
            goal: what is wanted.
            groups: the images by class and concept.
            reference: the same images in the model as it was given.
        """
        self._head, self._goal, self._groups = head, goal, groups
        self._weight, self._x = head.weight.double(), head.x.double()
        self._plain = head.logits.double()
        self._reference = reference

    @cached_property
    def _before(self) -> dict[str, float]:
        """The figures of the reference; what only makes updates has no need of them."""
        return self._measured(self._reference.logits.double())

    def update(
        self, change: HeadChange, rows: tuple[int, ...] | None, fitted: Tensor, refits: bool
    ) -> LowRankUpdate:
        """Return a change of the head on some rows, with or without the biases refitted.

        Args:
            change: of all rows.
            rows: those that change; None means all.
            fitted: images that biases are fitted to, every group counting alike.
            refits: whether they are.
        """
        index = torch.arange(len(self._weight)) if rows is None else torch.tensor(rows)
        left, right, shift = change.left[index], change.right, change.shift[index]
        # Where no bias can take it over, the constant is left out, and judged without.
        update = LowRankUpdate(left, right, shift if self._head.has_bias else None)
        if refits:
            logits = self.logits(update, rows)[fitted]
            weights = self._groups.weights[fitted]
            gain = refitted_biases(logits, self._groups.labels[fitted], weights, index)
            update = LowRankUpdate(left, right, shift + gain)
        return update

    def logits(self, update: LowRankUpdate, rows: tuple[int, ...] | None) -> Tensor:
        """Return the logits of all images with an update of the head."""
        index = slice(None) if rows is None else list(rows)
        result = self._plain.clone()
        change = (self._x @ update.right.double()) @ update.left.double().T
        result[:, index] += change
        if update.shift is not None:
            result[:, index] += update.shift.double()
        return result

    def made(
        self, method: str, update: LowRankUpdate, rows: tuple[int, ...] | None, unseen: Tensor,
        nothing: Edit, *, is_control: bool,
    ) -> Candidate:  # fmt: skip
        """Return the candidate: its edit fitted on all images, its figures on unseen ones."""
        note = f"{method}; {self._goal.concept.note}"
        edit = edit_at(
            self._head.hooked, self._head.site, update, rows=rows, base=nothing.base,
            provenance=Provenance.of_concept(note),
        )  # fmt: skip
        recorded = self.logits(update, rows)
        return self.candidate(method, edit, unseen, recorded=recorded, is_control=is_control)

    def candidate(
        self, method: str, edit: Edit, unseen: Tensor, *, recorded: Tensor | None = None,
        is_control: bool,
    ) -> Candidate:  # fmt: skip
        """Return a candidate with its effect and harm.

        Args:
            method: what it is.
            edit: fitted on all images.
            unseen: logits of each image by an edit that was not fitted on it.
            recorded: logits by this very edit; harm is the larger of the two.
            is_control: whether it is what the others have to beat.
        """
        figures = self._measured(unseen)
        harm = self._harm(unseen)
        if recorded is not None:
            harm = max(harm, self._harm(recorded))
        before = self._before
        if isinstance(self._goal, RemoveShortcut):
            effect = figures["worst group"] - before["worst group"]
            error = self._groups.error(unseen.argmax(1))
        else:
            unit = "flips" if self._groups.paired else "dependence"
            effect = 1 - figures[unit] / before[unit] if before[unit] > 0 else 0.0
            # Of a share of n pairs, in units of the share before; of R², its usual size.
            count = len(self._groups.labels) / 2
            share = figures[unit] if self._groups.paired else 0.1
            error = (share * (1 - share) / count) ** 0.5 / max(before[unit], 1e-9)
        return Candidate(
            method,
            edit,
            effect,
            harm,
            figures,
            is_control,
            # Tried without pairs, too: there it did no better than taking the first of the list.
            loss=self._groups.worst_loss(unseen) if self._groups.paired else 0.0,
            error=0.0 if recorded is None else error,
        )

    def _measured(self, logits: Tensor) -> dict[str, float]:
        predicted = logits.argmax(1)
        accuracies = self._groups.accuracies(predicted)
        figures = {
            "balanced accuracy": float(np.mean([*accuracies.values()])),
            "worst group": min(accuracies.values()),
            "accuracy": float((predicted == self._groups.labels).double().mean()),
            "dependence": self._groups.dependence(logits),
        }
        if self._groups.paired:
            figures["flips"] = self._groups.flips(predicted)
        return figures

    def _harm(self, logits: Tensor) -> float:
        """Return the loss of accuracy, over groups, or of a class to be kept if that is larger."""
        balanced = float(np.mean([*self._groups.accuracies(logits.argmax(1)).values()]))
        losses = [self._before["balanced accuracy"] - balanced]
        if self._goal.keep:
            kept = list(self._goal.keep)
            losses += (self._reference.before - self._head.accuracies(logits))[kept].tolist()
        return max(losses)
