r"""The critical strength of an edit at any site, searched on the edited model's own forward pass.

Behind a hidden site the logit is no known function of the strength, so nothing but running the
edited model tells where it falls. The strengths of a grid are tried in ascending order; the first
at which the target is met closes a bracket, which is then halved. What happens between two
neighbouring strengths of the grid is not seen: a logit that falls below the target and comes back
between them is missed, and then a later crossing, or none, is returned. The grid's step says how
short such a dip must be.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from salve_plugin.control.applied_edits import status
from salve_plugin.control.crit_summary import Summarized
from salve_plugin.control.critical import Against, CritGoal, check_goal
from salve_plugin.control.decisions import check_threshold
from salve_plugin.control.edit import Edit, check_edit
from salve_plugin.control.locks import locked
from salve_plugin.control.operators import Gate, LowRankUpdate
from salve_plugin.control.operators.base import real
from salve_plugin.control.solving import check_labels
from salve_plugin.discover.recording.labels import model_batches
from salve_plugin.errors import EditStateError, InputError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.images import run
from salve_plugin.integers import whole
from salve_plugin.modes import evaluating

GATE_LIMIT = 10.0
r"""A gate is tried up to $\alpha\max_j\mathrm{reach}_j$ of this, by default."""

MAP_LIMIT = 2.0
"""A low-rank map is tried up to this amount: removed at 1, mirrored at 2."""


@dataclass(frozen=True, eq=False)
class SearchedCrit(Summarized):
    """Critical strengths that were searched, and how finely.

    The target is met at each finite value, and was not met at any tried strength below it. The
    first crossing lies at most `tolerance` below the value, unless a logit reached the target and
    came back between two strengths of the grid, which are `step` apart.

    Attributes:
        values: (images,); 0: at the target already; inf: at no strength of the grid.
        labels: class of each image, (images,).
        predicted: class that the unedited model predicts, (images,).
        target: "zero", "fraction" or "flip".
        fraction: of the logit, for target "fraction".
        against: whose logit: the image's own "label" or the "predicted" class.
        family: `Edit.family` of the edits that these strengths are of.
        limit: the largest strength tried.
        step: between two strengths of the grid.
        tolerance: width of the last brackets.
        threshold: of a classifier with one logit.
    """

    __repr__ = Summarized.__repr__

    values: Float64[Tensor, " images"]
    labels: Int64[Tensor, " images"]
    predicted: Int64[Tensor, " images"]
    target: CritGoal
    fraction: float
    against: Against
    family: str
    limit: float
    step: float
    tolerance: float
    threshold: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the summary as plain JSON values."""
        return {
            "target": self.target,
            "fraction": self.fraction if self.target == "fraction" else None,
            "against": self.against,
            "family": self.family,
            "limit": self.limit,
            "step": self.step,
            "tolerance": self.tolerance,
            "threshold": self.threshold,
            "classes": [entry.to_json() for entry in self.summary()],
        }


@torch.no_grad()
def search_alpha_crit(
    hooked: HookedModel,
    edit: Edit,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    target: CritGoal = "flip",
    fraction: float = 0.5,
    against: Against = "label",
    threshold: float = 0.0,
    limit: float | None = None,
    steps: int = 40,
    halvings: int = 8,
) -> SearchedCrit:
    """Return the critical strength of an edit at any site for each image, by search.

    The edit is applied at increasing strengths and the model is run, in eval mode; afterwards, on
    an error too, the model is as it was. At the head's input `alpha_crit` is exact and faster.
    A batch costs `steps` forward passes, and then at most `halvings` passes over each image.

    Args:
        hooked: the attached model, without the edit.
        edit: a gate or a low-rank map at any site; its own strength plays no part.
        loader: batches of (images, labels), as for `record`.
        target: as for `alpha_crit`, and so are the next three.
        fraction: of the logit.
        against: whose logit.
        threshold: of a classifier with one logit.
        limit: largest strength; by default 10 over a gate's largest reach, for a map the amount 2.
        steps: strengths of the grid, evenly spaced up to the limit.
        halvings: of a bracket.

    Raises:
        InputError: if the edit has no strength, an option is out of range, labels do not fit, or
            logits are not finite.
        EditStateError: if the edit is applied.
        BaseMismatchError: if the model is not the one that the edit was made for.
    """
    check_attached(hooked)
    check_edit(edit)
    check_goal(target, fraction, against)
    grid = _grid(edit, limit, steps, halvings)
    _check_not_applied(hooked, edit)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    # Held over the whole search, since between two strengths nobody may edit the model. The lock is
    # re-entrant: applying the edit takes it again.
    with locked(hooked) as model, evaluating(model):
        for batch in model_batches(hooked, loader):
            images, labels = batch.images, batch.labels
            name = f"batch {batch.number}"
            search = _Search(model, edit, images, name, target, fraction, threshold)
            before = search.logits(0.0, images)
            check_labels(labels, before.shape[1])
            predicted = before.argmax(1)
            asked = labels if against == "label" else predicted
            columns.append((search.values(before, asked, grid, halvings), labels, predicted))
    values, labels, predicted = (torch.cat(column) for column in zip(*columns, strict=True))
    step = float(grid[0])
    return SearchedCrit(
        values, labels, predicted, target, fraction, against, edit.family, float(grid[-1]), step,
        step / 2**halvings, float(threshold),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Search:
    """One batch of images and the target that their logits are to reach."""

    model: nn.Module
    edit: Edit
    images: Tensor
    name: str
    target: CritGoal
    fraction: float
    threshold: float

    def values(self, before: Tensor, asked: Tensor, grid: Tensor, halvings: int) -> Tensor:
        """Return the first strengths that were found, one an image."""
        own = before.gather(1, asked[:, None])[:, 0]
        goal = own * (self.fraction if self.target == "fraction" else 0.0)
        low = torch.zeros(len(asked), dtype=torch.float64)
        high = torch.full_like(low, torch.inf)
        high[self._met(before, asked, goal)] = 0.0
        # Neighbours in the grid; the first list is longer by one on purpose.
        for last, strength in zip([0.0, *grid.tolist()], grid.tolist(), strict=False):
            (left,) = high.isinf().nonzero(as_tuple=True)
            if not len(left):
                break
            met = left[self._met_at(strength, left, asked, goal)]
            low[met], high[met] = last, strength
        # From here on the target is met at `high` and not at `low`, and each halving keeps that.
        for _ in range(halvings):
            (open_,) = (high.isfinite() & (high > 0)).nonzero(as_tuple=True)
            middle = (low + high)[open_] / 2
            # Images of one bracket share an application of the edit and a forward pass.
            # Brackets that are halved alike have, to the bit, the same middle, so that == finds
            # them all.
            for strength in sorted(set(middle.tolist())):
                some = open_[middle == strength]
                met = self._met_at(strength, some, asked, goal)
                high[some[met]], low[some[~met]] = strength, strength
        return high

    def logits(self, strength: float, images: Tensor) -> Float64[Tensor, "images classes"]:
        """Return the logits at a strength; a single one as the two sides of its threshold."""
        with self._edited(strength):
            output = run(self.model, images, self.name)
        first = output[0] if isinstance(output, tuple | list) else output
        logits: Tensor = first.cpu().double()
        if logits.ndim != 2 or not bool(logits.isfinite().all()):
            way_out = "lower the limit" if strength else "check the images and the model's weights"
            raise InputError(
                f"the model returns {list(logits.shape)} logits at strength {strength:.4g}, not "
                f"all of them finite, or not (images, classes); {way_out}"
            )
        check_threshold(self.threshold, logits.shape[1])
        if logits.shape[1] > 1:
            return logits
        # Mirrored and not [0, z - threshold]: a target of its own logit asks how far that is on its
        # class's side, and a constant 0 would be at the target "zero" from the start.
        return torch.cat([self.threshold - logits, logits - self.threshold], 1)

    @contextmanager
    def _edited(self, strength: float) -> Iterator[None]:
        if not strength:
            yield
            return
        with self.edit.with_strength(strength).applied(self.model):
            yield

    def _met_at(self, strength: float, some: Tensor, asked: Tensor, goal: Tensor) -> Tensor:
        return self._met(self.logits(strength, self.images[some]), asked[some], goal[some])

    def _met(self, logits: Tensor, asked: Tensor, goal: Tensor) -> Tensor:
        """Say which images have reached the target."""
        own = logits.gather(1, asked[:, None])[:, 0]
        reached = goal
        if self.target == "flip":
            reached = logits.scatter(1, asked[:, None], -torch.inf).amax(1)
        # A tie counts as reached, as it does for the exact strengths.
        met: Tensor = own <= reached
        return met


def _grid(edit: Edit, limit: float | None, steps: int, halvings: int) -> Tensor:
    if isinstance(edit.operator, LowRankUpdate):
        raise InputError(f"edit {edit.digest[:12]} is a low-rank update, which has no strength")
    if whole(steps, "steps") < 1 or not 0 <= whole(halvings, "halvings") <= 40:
        raise InputError(f"steps {steps} must be at least 1, and halvings {halvings} from 0 to 40")
    if limit is None:
        gate = edit.operator if isinstance(edit.operator, Gate) else None
        limit = MAP_LIMIT if gate is None else GATE_LIMIT / float(gate.reach.max())
    limit = real(limit, "limit")
    if not 0 < limit < float("inf"):
        raise InputError(f"limit {limit} is not a finite number above 0")
    # Multiples of the step, no running sum, whose rounding would grow towards the limit.
    return torch.arange(1, steps + 1, dtype=torch.float64) * (limit / steps)


def _check_not_applied(hooked: HookedModel, edit: Edit) -> None:
    if any(entry.edit.family == edit.family for entry in status(hooked).applied):
        raise EditStateError(
            f"edit {edit.digest[:12]} is applied, at this strength or another; revert it first"
        )
