"""Which rows to edit when the class's own row is not enough.

Suppression never takes a logit below its bias plus what the closed columns leave. A class whose
rivals are all far below zero therefore keeps winning with its own row fully suppressed. But the
same latent carries the rivals' evidence *against* the class: suppressing it in a rival's row lifts
the rival. So a few rivals' rows, chosen for what they cost the other classes, finish the work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import DIGITS, accuracies, leads
from salve_plugin.control.operators import multiplier
from salve_plugin.errors import InputError

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Strengths tried: those that close this share of the columns, at the kinks 1/|c_j|. Closing all of
them would be zeroing the row, which needs no feature."""

MAX_ROWS = 5
NEAREST = 12
"""Rivals considered: those whose edited logits come closest to the class's on its own images."""

AIM = 0.01
"""Rows are added until the class's accuracy on the recorded images is at most this."""

MAX_LOSS = 0.006
"""Rows whose cost to the other classes' mean accuracy would exceed this are not added."""


@dataclass(frozen=True)
class RowSet:
    """Rows and a strength to edit together, and what they do on the recorded images.

    Attributes:
        rows: the class's own row first.
        strength: at which they were found.
        target_accuracy: of the class, after.
        others_loss: mean loss of accuracy of the other classes, not below 0.
        margin: by how much the class's logit exceeds the best other one, 95 % quantile over its
            images; the lower, the safer is the edit for images that were not recorded.
    """

    rows: tuple[int, ...]
    strength: float
    target_accuracy: float
    others_loss: float
    margin: float


def strengths_by_closure(
    direction: Float[Tensor, " width"], shares: Sequence[float] = SHARES
) -> list[float]:
    """Return the strengths at which the given shares of the columns that move are closed."""
    reach = direction.detach().double().abs()
    reach = reach[reach > 0].sort(descending=True).values
    at = [min(len(reach) - 1, max(0, round(share * len(reach)) - 1)) for share in shares]
    return sorted({float(1 / reach[index]) for index in at})


def rival_rows(
    weight: Float[Tensor, "classes width"],
    bias: Float[Tensor, " classes"],
    direction: Float[Tensor, " width"],
    inputs: Float[Tensor, "images width"],
    labels: Int64[Tensor, " images"],
    label: int,
    strengths: Sequence[float] | None = None,
    *,
    max_harm: float = 1.0,
) -> RowSet:
    """Return the rows that suppress a class at least cost, found greedily at each strength.

    Rows are added one by one, each time the one that lowers the class's accuracy most, while the
    others' mean loss stays within `MAX_LOSS`. An edit of the own row alone that reaches `AIM` is
    returned as it is. Every row set is judged by recounting the predictions, with no
    approximation: mixing rows is choosing columns between the plain and the edited logits.

    Args:
        weight: the head, (classes, width).
        bias: (classes,).
        direction: unit-norm atom.
        inputs: recorded head inputs, (images, width).
        labels: their classes.
        label: the class to suppress.
        strengths: those tried, by default `strengths_by_closure`.
        max_harm: the largest loss of accuracy of any other class that a rival's row may cost.

    Raises:
        InputError: if the class has no images.
    """
    if not bool((labels == label).any()):
        raise InputError(
            f"class {label} has no recorded images, on which the rows of its rivals could be "
            "found; record some, or name the rows"
        )
    plain = torch.addmm(bias, inputs, weight.T)
    before = accuracies(plain, labels)
    found = []
    for strength in strengths_by_closure(direction) if strengths is None else strengths:
        factors = multiplier(direction, strength).to(weight.dtype)
        # Scaling the inputs gives the logits of all rows edited in one product. Which rows really
        # are is decided afterwards, by picking columns of logits.
        edited = torch.addmm(bias, inputs * factors, weight.T)
        judge = _Judge(plain, edited, labels, label, before)
        found += list(_grown(judge, label, strength, max_harm))
    # Of equals the first: strengths ascend, and the own row alone comes before larger sets.
    return min(found, key=badness)


def with_rivals(
    edit: Edit,
    weight: Float[Tensor, "classes width"],
    bias: Float[Tensor, " classes"],
    recorded: tuple[Float[Tensor, "images width"], Int64[Tensor, " images"]],
    label: int,
    strengths: Sequence[float] | None = None,
    *,
    max_harm: float = 1.0,
) -> Edit:
    """Return the edit with its latent's best row set, at the strength that belongs to it.

    Args:
        edit: suppresses a latent.
        weight: the head, (classes, width), without the edit.
        bias: (classes,).
        recorded: head inputs and labels of images.
        label: the class to suppress.
        strengths: as for `rival_rows`.
        max_harm: as for `rival_rows`.

    Raises:
        InputError: as `rival_rows`.
    """
    direction = edit.gate.directions[0] if len(edit.gate.directions) == 1 else None
    if direction is None:
        raise InputError("rows of rivals are found for an edit of one latent; name the rows")
    if len(weight) < 2:
        raise InputError("a classifier with one logit has no rivals, whose rows could be found")
    weight, bias, direction = (each.float().cpu() for each in (weight, bias, direction))
    rowset = rival_rows(weight, bias, direction, *recorded, label, strengths, max_harm=max_harm)
    return replace(edit, rows=rowset.rows).with_strength(rowset.strength)


def badness(found: RowSet) -> tuple[float, float, float]:
    """Order row sets: the class's accuracy down to `AIM`, the others' loss, then the margin."""
    missed = max(found.target_accuracy, AIM)
    return missed, max(0.0, found.others_loss - MAX_LOSS), found.margin


def _grown(judge: "_Judge", label: int, strength: float, max_harm: float) -> Iterator[RowSet]:
    """Yield the own row alone and every larger set on the greedy path."""
    rows: tuple[int, ...] = (label,)
    target, loss, _ = judge.of(rows)
    yield RowSet(rows, strength, target, loss, judge.margin(rows))
    # Greedy: a row that helps only together with another is not found. Every set on the path is a
    # candidate, since a smaller one may have the better margin.
    while target > AIM and len(rows) < MAX_ROWS:
        options = [
            (*judge.of((*rows, rival)), rival) for rival in judge.nearest if rival not in rows
        ]
        options = [
            option for option in options
            if option[0] < target and option[1] <= MAX_LOSS and option[2] <= max_harm
        ]  # fmt: skip
        if not options:
            return
        # Tuples compare in order: the class's accuracy, then the mean loss, the worst one, and the
        # index.
        target, loss, _, rival = min(options)
        rows = (*rows, rival)
        yield RowSet(rows, strength, target, loss, judge.margin(rows))


class _Judge:
    """Recounts predictions for any set of edited rows at one strength."""

    def __init__(
        self, plain: Tensor, edited: Tensor, labels: Tensor, label: int, before: Tensor
    ) -> None:
        self.plain, self.edited, self.labels, self.label = plain, edited, labels, label
        self.before = before
        # Classes without images have the accuracy NaN and are nobody's loss.
        self.others = before.isfinite()
        self.others[label] = False
        # The rows that stand highest once the own row is edited are those that may be pushed
        # further; trying all would be as many recounts as classes.
        closeness = edited[labels == label].mean(0)
        closeness[label] = -torch.inf
        self.nearest = closeness.topk(min(NEAREST, len(before) - 1)).indices.tolist()

    def margin(self, rows: tuple[int, ...]) -> float:
        """Return the 95 % quantile of the class's lead over the best other class."""
        own = self._mixed(rows)[self.labels == self.label]
        return float(leads(own, self.label).quantile(0.95))

    def _mixed(self, rows: tuple[int, ...]) -> Tensor:
        logits = self.plain.clone()
        logits[:, list(rows)] = self.edited[:, list(rows)]
        return logits

    def of(self, rows: tuple[int, ...]) -> tuple[float, float, float]:
        """Return the class's accuracy, the others' mean loss (not below 0), and the worst one."""
        logits = self._mixed(rows)
        after = accuracies(logits, self.labels)
        losses = (self.before - after)[self.others]
        if not len(losses):
            return float(after[self.label]), 0.0, 0.0
        # Without the rounding of the differences, which would refuse a loss of just the bound.
        mean, worst = (round(float(loss), DIGITS) for loss in (losses.mean(), losses.max()))
        return float(after[self.label]), max(0.0, mean), worst
