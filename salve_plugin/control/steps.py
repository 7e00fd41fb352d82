r"""What is predicted at every strength of a gate on all rows, exactly: a step function of $\alpha$.

All logits of an image are piecewise linear in the strength, with knots at every $1/|c_j|$ (see
`salve_plugin.control.knots`), so the prediction is the upper envelope of as many such functions as
there are classes. Most classes are nowhere near it: between the ends of a block of knots a logit
stays within a bound of its chord, and a class whose bound lies below what another one surely
reaches is left out. For the others the logits at all knots are computed in float64; between two
neighbouring knots they are lines, so where the same class is largest at both ends it is largest in
between, and elsewhere the lines' crossings are followed from the one end to the other.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.knots import BLOCK, LIMIT, Knots
from salve_plugin.errors import InputError

_IMAGES = 64
"""Images bounded at once: every bound is (images, classes) for each of some ten blocks."""


@dataclass(frozen=True, eq=False)
class Steps:
    r"""The prediction of each image as a step function of the strength, from 0 to a limit.

    Attributes:
        start: class predicted at strength 0, (images,).
        images: of each step, ascending, (steps,).
        strengths: where each step is; ascending within an image, (steps,).
        classes: what is predicted from there on, (steps,).
        limit: nothing is said about larger strengths.
    """

    start: Int64[Tensor, " images"]
    images: Int64[Tensor, " steps"]
    strengths: Float64[Tensor, " steps"]
    classes: Int64[Tensor, " steps"]
    limit: float

    def at(self, strength: float) -> Int64[Tensor, " images"]:
        """Return what is predicted at a strength.

        Raises:
            InputError: if it is not between 0 and the limit.
        """
        if not 0 <= strength <= self.limit:
            raise InputError(f"strength {strength} is not between 0 and the limit {self.limit}")
        predicted = self.start.clone()
        reached = self.strengths <= strength
        # Within an image strengths ascend, so the last step that is reached is the one that holds.
        for image, label in zip(self.images[reached], self.classes[reached], strict=True):
            predicted[image] = label
        return predicted


def prediction_steps(
    weight: Float[Tensor, "classes width"],
    bias: Float[Tensor, " classes"],
    reach: Float[Tensor, " width"],
    x: Float[Tensor, "images width"],
    limit: float,
) -> Steps:
    r"""Return what a head predicts at every strength of a suppression of all its rows.

    Exact: the strengths are roots of lines in float64, no grid is searched. Where two logits are
    equal over a whole segment, the class of the lower index is the prediction.

    Args:
        weight: the head, (classes, width).
        bias: (classes,).
        reach: how much the gate's latents reach each feature, see `Gate.reach`; not all zero.
        x: head inputs, (images, width).
        limit: the largest strength; at most 1000 / max(reach).

    Raises:
        InputError: if the limit is out of range or the reach is zero everywhere.
    """
    largest = float(reach.max())
    if not largest > 0 or not 0 < limit <= LIMIT / largest * (1 + 1e-9):
        raise InputError(
            f"limit {limit:.6g} is to be above 0 and at most {LIMIT:g} / {largest:.6g}, the "
            "largest reach, which is to be above 0"
        )
    knots = Knots.of(reach)
    weight, bias = weight.double(), bias.double()
    starts, images, strengths, classes = [], [], [], []
    for first in range(0, len(x), _IMAGES):
        part = x[first : first + _IMAGES].double()
        start = (part @ weight.T + bias).argmax(1)
        starts.append(start)
        near = _near(weight, bias, knots, part, limit)
        near[torch.arange(len(part)), start] = True
        for image, own in enumerate(near):
            labels = own.nonzero()[:, 0]
            logits, at = _at_knots(weight[labels], bias[labels], knots, part[image], limit)
            for strength, label in _envelope(at, logits):
                images.append(first + image)
                strengths.append(strength)
                classes.append(int(labels[label]))
    return Steps(
        torch.cat(starts),
        torch.tensor(images, dtype=torch.int64),
        torch.tensor(strengths, dtype=torch.float64),
        torch.tensor(classes, dtype=torch.int64),
        limit,
    )


def _near(
    weight: Float64[Tensor, "classes width"],
    bias: Float64[Tensor, " classes"],
    knots: Knots,
    x: Float64[Tensor, "images width"],
    limit: float,
) -> Bool[Tensor, "images classes"]:
    """Say which classes may be predicted at some strength up to the limit."""
    near = torch.zeros(len(x), len(weight), dtype=torch.bool)
    if len(weight) <= BLOCK:  # to solve all of them costs less than to bound them
        return ~near
    columns = knots.columns.view(-1, BLOCK)
    offset = x[:, knots.rest] @ weight[:, knots.rest].T + bias
    slope = (x[:, knots.rest] * knots.rest_reach) @ weight[:, knots.rest].T
    for block, own in enumerate(columns):
        terms, rows = x[:, own].clone(), weight[:, own]
        if block == 0:
            terms[:, : knots.padding] = 0
        high = offset - knots.strengths[block, 0] * slope
        offset = offset + terms @ rows.T
        slope = slope + (terms * knots.reach[block]) @ rows.T
        end = float(knots.strengths[block, -1])
        if end > limit:
            continue
        low = offset - end * slope
        # Either side of the chord: positive contributions bend a logit down, negative ones up.
        bend = knots.bend[block] * (terms.abs() @ rows.abs().T) * (1 + 1e-9)
        surely = (torch.minimum(low, high) - bend).amax(1, keepdim=True)
        near |= torch.maximum(low, high) + bend >= surely
    # From the smallest knot down to strength 0 all logits are lines: the ends tell nothing about
    # what is largest between them but that it is not below the better end's chord.
    low, high = offset, offset - knots.strengths[-1, -1] * slope
    surely = torch.minimum(low, high).amax(1, keepdim=True)
    return near | (torch.maximum(low, high) >= surely)


def _at_knots(
    weight: Float64[Tensor, "classes width"],
    bias: Float64[Tensor, " classes"],
    knots: Knots,
    x: Float64[Tensor, " width"],
    limit: float,
) -> tuple[Float64[Tensor, "classes knots"], Float64[Tensor, " knots"]]:
    """Return logits at strength 0, at all knots below the limit, and at the limit; and where."""
    columns, reach = knots.columns[knots.padding :], knots.reach.view(-1)[knots.padding :]
    rest = weight[:, knots.rest] * x[knots.rest]
    terms = torch.cat([rest.sum(1, keepdim=True), weight[:, columns] * x[columns]], 1)
    falls = torch.cat([(rest * knots.rest_reach).sum(1, keepdim=True), terms[:, 1:] * reach], 1)
    # Sums from the smallest reach up: what is used up is never subtracted again.
    offset, slope = terms.cumsum(1) + bias[:, None], falls.cumsum(1)
    strengths = 1 / reach  # descending
    below = strengths < limit
    first = int((~below).sum())  # columns that outlive the limit
    inside = strengths[below]
    logits = torch.cat(
        [
            offset[:, -1:],
            (offset[:, first:-1] - inside * slope[:, first:-1]).flip(1),
            offset[:, first, None] - limit * slope[:, first, None],
        ],
        1,
    )
    return logits, torch.cat([inside.new_zeros(1), inside.flip(0), inside.new_tensor([limit])])


def _envelope(
    strengths: Float64[Tensor, " knots"], logits: Float64[Tensor, "classes knots"]
) -> list[tuple[float, int]]:
    """Return where the largest of piecewise-linear functions changes, and to which."""
    winners = logits.argmax(0)
    steps: list[tuple[float, int]] = []
    for knot in (winners.diff() != 0).nonzero()[:, 0].tolist():
        begin, end = strengths[knot], strengths[knot + 1]
        at, following = logits[:, knot], logits[:, knot + 1]
        own, last = int(winners[knot]), int(winners[knot + 1])
        share = 0.0
        while own != last:
            # Of those that end above the present one, the first to cross it.
            gap = at[own] - at
            rise = (following - at) - (following[own] - at[own])
            crossing = torch.where(following > following[own], gap / rise, torch.inf)
            if not bool(crossing.isfinite().any()):
                own, crossed = last, 1.0  # equal at the end of the segment
            else:
                own = int(crossing.argmin())
                crossed = float(crossing[own])
            share = min(max(share, crossed), 1.0)
            steps.append((float(begin + share * (end - begin)), own))
    return steps
