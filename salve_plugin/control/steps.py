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
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.knots import BLOCK, LIMIT, Knots
from salve_plugin.errors import InputError

_ENTRIES = 1 << 21
"""Numbers in the sums over blocks that are alive at once: 16 MiB, twice."""


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
        # A loop, as an indexed assignment leaves open which of several values for one image stays.
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
    # A caller may have computed the quotient LIMIT / largest in another precision, so that the
    # bound has slack for its rounding.
    largest = float(reach.max())
    if not largest > 0 or not 0 < limit <= LIMIT / largest * (1 + 1e-9):
        raise InputError(
            f"limit {limit:.6g} is to be above 0 and at most {LIMIT:g} / {largest:.6g}, the "
            "largest reach, which is to be above 0"
        )
    blocks = _Blocks.of(Knots.of(reach), limit)
    weight, bias = weight.double(), bias.double()
    # Every block has sums of (images, classes), and some blocks are alive at once.
    size = max(1, _ENTRIES // (len(weight) * (len(blocks.columns) + 1)))
    starts, parts = [], []
    for first in range(0, len(x), size):
        start, images, strengths, classes = _steps(
            weight, bias, blocks, x[first : first + size].double()
        )
        starts.append(start)
        parts.append((images + first, strengths, classes))
    images, strengths, classes = (torch.cat(each) for each in zip(*parts, strict=True))
    within = strengths <= limit
    return Steps(torch.cat(starts), images[within], strengths[within], classes[within], limit)


@dataclass(frozen=True)
class _Blocks:
    """Blocks of columns that close one after the other, and where, by ascending reach.

    Block b is about strengths from `begin[b]`, where the block after it has closed, to its own
    largest knot: the last begins at 0.

    Attributes:
        columns: (blocks, BLOCK).
        reach: (blocks, BLOCK); the entries that fill the first block up count for nothing.
        strengths: knots, descending, (blocks, BLOCK).
        begin: (blocks,).
        bend: the largest gap between a unit contribution and its chord over the block, (blocks,).
        padding: how many entries in front count for nothing.
        rest: columns that close beyond all strengths of interest.
        rest_reach: of them.
        first: the block that the limit lies in; those before it are beyond.
    """

    columns: Int64[Tensor, "blocks block"]
    reach: Float64[Tensor, "blocks block"]
    strengths: Float64[Tensor, "blocks block"]
    begin: Float64[Tensor, " blocks"]
    bend: Float64[Tensor, " blocks"]
    padding: int
    rest: Int64[Tensor, " rest"]
    rest_reach: Float64[Tensor, " rest"]
    first: int

    @classmethod
    def of(cls, knots: Knots, limit: float) -> "_Blocks":
        """Join the blocks of knots to one another, so that no strength lies between two."""
        strengths = knots.strengths
        # Not `Knots.bend`, whose chord starts at the block's own smallest knot: here a chord starts
        # where the next block ends, and a longer chord lies further above the corners.
        begin = torch.cat([strengths[1:, 0], strengths.new_zeros(1)])
        start, end = begin[:, None], strengths[:, :1]
        gap = (1 - start * knots.reach) * (end - strengths) / (end - start).clamp(min=1e-300)
        return cls(
            knots.columns.view(-1, BLOCK), knots.reach, strengths, begin, gap.amax(1).clamp(min=0),
            knots.padding, knots.rest, knots.rest_reach, int((begin >= limit).sum()),
        )  # fmt: skip


def _steps(
    weight: Float64[Tensor, "classes width"],
    bias: Float64[Tensor, " classes"],
    blocks: _Blocks,
    x: Float64[Tensor, "images width"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the start and the steps of some images; steps beyond the limit may be among them."""
    rest = x[:, blocks.rest]
    offsets = [rest @ weight[:, blocks.rest].T + bias]
    slopes = [(rest * blocks.rest_reach) @ weight[:, blocks.rest].T]
    terms = []
    for block, columns in enumerate(blocks.columns):
        terms.append(x[:, columns])
        if block == 0:
            terms[0][:, : blocks.padding] = 0
        # Sums from the smallest reach up: what is used up is never subtracted again.
        rows = weight[:, columns].T
        offsets.append(offsets[-1] + terms[-1] @ rows)
        slopes.append(slopes[-1] + (terms[-1] * blocks.reach[block]) @ rows)
    start = offsets[-1].argmax(1)
    current = start.clone()
    steps: list[tuple[int, float, int]] = []
    # Blocks ascend by reach, so that the last one has the smallest strengths: the walk goes from
    # strength 0 upwards, with the class predicted so far as its state.
    for block in range(len(blocks.columns) - 1, blocks.first - 1, -1):
        own = weight[:, blocks.columns[block]]
        low = offsets[block + 1] - blocks.begin[block] * slopes[block + 1]
        high = offsets[block] - blocks.strengths[block, 0] * slopes[block]
        # To either side of the chord: positive contributions bend a logit down, negative ones up.
        # The factor above 1 keeps the bound a bound although its own sums are rounded.
        bend = blocks.bend[block] * (1 + 1e-9) * (terms[block].abs() @ own.abs().T)
        surely = (torch.minimum(low, high) - bend).amax(1, keepdim=True)
        near = torch.maximum(low, high) + bend >= surely
        near[torch.arange(len(x)), current] = True
        at = torch.cat([blocks.begin[block, None], blocks.strengths[block].flip(0)])
        # The present class is always among the near ones, so that a single one means no change
        # within the block.
        for image in (near.sum(1) > 1).nonzero()[:, 0].tolist():
            labels = near[image].nonzero()[:, 0]
            products = own[labels] * terms[block][image]
            values = torch.cat(
                [
                    low[image, labels, None],
                    _at_knots(
                        products, offsets[block][image, labels], slopes[block][image, labels],
                        blocks.reach[block], blocks.strengths[block],
                    ).flip(1),
                ],
                1,
            )  # fmt: skip
            found = _envelope(at, values, int((labels == current[image]).nonzero()))
            steps += [(image, strength, int(labels[winner])) for strength, winner in found]
            if found:
                current[image] = labels[found[-1][1]]
    steps.sort(key=lambda step: step[0])  # stable: strengths ascend within an image already
    images, strengths, classes = zip(*steps, strict=True) if steps else ((), (), ())
    return (
        start,
        torch.tensor(images, dtype=torch.int64),
        torch.tensor(strengths, dtype=torch.float64),
        torch.tensor(classes, dtype=torch.int64),
    )


def _at_knots(
    products: Float64[Tensor, "classes block"],
    offset: Float64[Tensor, " classes"],
    slope: Float64[Tensor, " classes"],
    reach: Float64[Tensor, " block"],
    strengths: Float64[Tensor, " block"],
) -> Float64[Tensor, "classes block"]:
    """Return logits at the knots of a block, from the sums over the columns before it."""
    falls = products * reach
    # Exclusive sums: at its own knot a column contributes nothing.
    before = products.cumsum(1) - products
    sloping = falls.cumsum(1) - falls
    return offset[:, None] + before - strengths * (slope[:, None] + sloping)


def _envelope(
    strengths: Float64[Tensor, " knots"], logits: Float64[Tensor, "classes knots"], current: int
) -> list[tuple[float, int]]:
    """Return where the largest of piecewise-linear functions changes, and to which.

    Args:
        strengths: ascending.
        logits: at them; lines in between.
        current: what was largest just before the first.
    """
    winners = logits.argmax(0)
    steps: list[tuple[float, int]] = []
    # Two logits that are equal at a strength may differ in the last bit, summed otherwise.
    if int(winners[0]) != current and float(logits[current, 0]) < float(logits[:, 0].max()):
        steps.append((float(strengths[0]), int(winners[0])))
    elif int(winners[0]) != current:
        winners[0] = current
    for knot in (winners.diff() != 0).nonzero()[:, 0].tolist():
        begin, end = strengths[knot], strengths[knot + 1]
        at, following = logits[:, knot], logits[:, knot + 1]
        own, last = int(winners[knot]), int(winners[knot + 1])
        # Between two knots the largest of the lines is convex: each class that takes over has a
        # larger slope than the one before it. So the walk meets a class at most once, and ends at
        # the right end's winner.
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
            # Rounding may put a crossing before the one that led to it; strengths must ascend all
            # the same.
            share = min(max(share, crossed), 1.0)
            steps.append((float(begin + share * (end - begin)), own))
    return steps
