"""Controls: what needs no concept, no dictionary, or no thought, done in an edit's place.

They act on the classifier, on the very inputs that the edit was measured on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.assessment.batches import Batch, Batches, Head
from salve_plugin.control.assessment.outcomes import ControlName
from salve_plugin.control.rows import Rows, index_of
from salve_plugin.control.writers.mask import CLEARANCE
from salve_plugin.discover.dictionary import Dictionary

Logits = Callable[[Batch], Float64[Tensor, "images classes"]]
"""Returns the logits of a batch with a control in the edit's place."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What controls are made of.

    Attributes:
        head: the classifier before the edit; None if it is not known.
        rows: those of the classifier's weight that the edit changes; None means all.
        norm: Frobenius norm of that change; 0 if it changes none.
        lowest: the least logit of all images before the edit.
        range: the greatest one minus the least.
        mean: of the classifier's inputs (width,); None if those of an image are not known.
        difference: mean of the target's inputs (the images with the concept) minus that of the
            others, (width,); None if either has no images, or there is none.
    """

    head: Head | None
    rows: Rows
    norm: float
    lowest: float
    range: float
    mean: Tensor | None
    difference: Tensor | None


@dataclass(frozen=True, eq=False)
class Made:
    """A control, ready to be measured.

    Attributes:
        name: which.
        logits: what it leads to.
        norm: of the change of the classifier's weight; None if that is one of a bias.
    """

    name: ControlName
    logits: Logits
    norm: float | None


def ground_of(
    batches: Batches,
    head: Head | None,
    edited: Head | None,
    marked: Callable[[Tensor, int], Tensor],
) -> Ground:
    """Read the images once for what the controls need.

    Args:
        batches: of the images.
        head: the classifier before the edit.
        edited: after it.
        marked: gets labels (images,) and the position of the first image; says which images are the
            target's, or have the concept.
    """
    lowest, highest, start = float("inf"), -float("inf"), 0
    sums: dict[bool, Tensor] = {}
    counts = {True: 0, False: 0}
    is_known = True
    for batch in batches:
        lowest = min(lowest, float(batch.before.min()))
        highest = max(highest, float(batch.before.max()))
        mine = marked(batch.labels, start)
        start += len(batch.labels)
        # Of images of several sizes a classifier may be pooled behind itself for some only.
        is_known = is_known and batch.inputs is not None
        if batch.inputs is None:
            continue
        inputs = batch.inputs.double()
        for side in (True, False):
            here = inputs[mine == side]
            counts[side] += len(here)
            sums[side] = sums.get(side, inputs.new_zeros(inputs.shape[1])) + here.sum(0)
    mean = difference = None
    if sums and is_known:
        mean = (sums[True] + sums[False]) / (counts[True] + counts[False])
        if all(counts.values()):
            gap = sums[True] / counts[True] - sums[False] / counts[False]
            # Equal means differ by rounding at most, which points anywhere.
            difference = gap if float(gap.norm()) > 1e-12 * float(mean.norm()) else None
    change = None if head is None or edited is None else edited.weight - head.weight
    rows = norm = None
    if change is not None:
        touched = change.ne(0).any(1).nonzero()[:, 0].tolist()
        rows, norm = tuple(touched), float(change.norm())
    return Ground(head, rows, norm or 0.0, lowest, highest - lowest, mean, difference)


def controls_of_class(
    ground: Ground, target: int, seed: int, dictionary: Dictionary | None
) -> list[Made]:
    """Return the controls of an edit that is to suppress a class."""
    head = ground.head
    # Finite, so that losses and divergences stay so; below every recorded logit by their range, and
    # by what the edit of the same name keeps: where logits are close, the range alone hides little.
    masked = ground.lowest - ground.range - CLEARANCE
    made = [Made("mask", _column(target, masked), None)]
    if head is None:
        return made
    row = float(head.weight[target].norm())
    made.append(Made("zero row", _column(target, float(head.bias[target])), row))
    if ground.difference is not None:
        made.append(_taken_out("difference of means", ground, ground.difference, target))
    return made + _random(ground, target, seed, dictionary)


def controls_of_concept(ground: Ground, seed: int, dictionary: Dictionary | None) -> list[Made]:
    """Return the controls of an edit that is to suppress a concept."""
    head, mean, difference = ground.head, ground.mean, ground.difference
    if head is None:
        return []
    made: list[Made] = []
    if mean is not None and difference is not None:
        unit = difference / difference.norm()
        along = head.weight @ unit
        made.append(Made("difference of means", _added(-along, unit, mean), float(along.norm())))
    return made + _random(ground, None, seed, dictionary)


def _random(
    ground: Ground, target: int | None, seed: int, dictionary: Dictionary | None
) -> list[Made]:
    head = ground.head
    if head is None or ground.mean is None or not ground.norm:
        return []  # of an edit that leaves the classifier as it is there is no equal norm
    generator = torch.Generator().manual_seed(seed)
    # Before the latent, so that it is the same with and without a dictionary.
    direction = torch.randn(head.weight.shape[1], generator=generator, dtype=torch.float64)
    made = []
    if dictionary is not None and dictionary.width == len(direction):
        latent = int(torch.randint(dictionary.n_latents, (), generator=generator))
        atom = dictionary.atoms[latent].detach().cpu().double()
        made.append(_taken_out("random latent", ground, atom, target))
    return [*made, _taken_out("random direction", ground, direction, target)]


def _taken_out(name: ControlName, ground: Ground, direction: Tensor, target: int | None) -> Made:
    """Take a direction out of the rows that the edit changes, by as much as the edit changes them.

    The change is -s (W r) r^T, with s such that its norm is the edit's.
    """
    head = ground.head
    assert head is not None
    rows = ground.rows or (None if target is None else (target,))
    unit = direction / direction.norm()
    along = torch.zeros(len(head.weight), dtype=torch.float64)
    along[index_of(rows)] = (head.weight @ unit)[index_of(rows)]
    size = float(along.norm())
    # With the edit's norm, so that what the two differ in is the direction.
    if ground.norm and size:
        along *= ground.norm / size
        size = ground.norm
    return Made(name, _added(-along, unit, torch.zeros_like(unit)), size)


def _column(target: int, value: float) -> Logits:
    """Give every image the same logit of a class."""

    def logits(batch: Batch) -> Tensor:
        changed = batch.before.clone()
        changed[:, target] = value
        return changed

    return logits


def _added(left: Tensor, right: Tensor, centre: Tensor) -> Logits:
    """Add left right^T to the weight, around a point whose logits stay."""

    def logits(batch: Batch) -> Tensor:
        assert batch.inputs is not None  # the ground has a mean of them
        reading = (batch.inputs.double() - centre) @ right
        return batch.before + reading[:, None] * left

    return logits
