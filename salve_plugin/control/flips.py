r"""Where the decision breaks: the first of all rivals' logits to reach the label's, exactly.

Each rival is one problem of `salve_plugin.control.knots`: the difference of two logits. Thousands
of them are ruled out together by bounds that cost a few products of matrices for all: a rival that
provably stays below the label until another one is provably above it cannot come first. The few
that are left are solved one by one, so the result is, to the bit, that of solving all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from salve_plugin.control.knots import BLOCK, Knots
from salve_plugin.control.operators import Mode
from salve_plugin.control.solving import check_labels, solve
from salve_plugin.errors import InputError

_IMAGES = 128
"""Images bounded at once: they share the conversion of the rivals' rows to float64."""

_ENTRIES = 1 << 17
"""Numbers in one bound, images x rivals x blocks: 1 MiB, and some ten bounds are alive."""

_CONTRIBUTIONS = 1 << 19
"""Contributions solved at once, problems x width: 4 MiB."""


def flip(
    weight: Tensor,
    bias: Tensor,
    direction: Tensor,
    x: Tensor,
    labels: Tensor,
    rows: Iterable[int] | None,
    mode: Mode,
) -> tuple[Tensor, Tensor]:
    """Return the exact and the linear strength, each the smallest over all competitors.

    Args:
        weight: the head, (classes, width).
        bias: (classes,).
        direction: atom, (width,).
        x: head inputs, (images, width).
        labels: the class of each image, (images,).
        rows: the edited rows; None means all.
        mode: of the edit.

    Raises:
        InputError: if a label is no class, or a value is not finite.
    """
    check_labels(labels, len(weight))
    edited = torch.zeros(len(weight), dtype=torch.bool)
    edited[slice(None) if rows is None else torch.tensor(list(rows))] = True
    # Where the latent reaches nothing all is decided at strength 0, and any knots will do.
    knots = Knots.of(direction if bool(direction.any()) else torch.ones_like(direction))
    values = torch.full((len(x),), torch.inf, dtype=torch.float64)
    linear = values.clone()
    for first in range(0, len(x), _IMAGES):
        part = slice(first, first + _IMAGES)
        images = _Images(weight, bias.double(), edited, knots, x[part].double(), labels[part])
        for image, terms, height in images.problems(mode):
            # Contributions in the place of activations: their weight is one.
            ones = terms.new_ones(1, terms.shape[1])
            exact, line = solve(ones, direction, terms, height, mode, None, knots)
            # The decision breaks at the first competitor that arrives.
            # A slice is a view, so that the result lands in `values` itself.
            values[part].scatter_reduce_(0, image, exact, "amin")
            linear[part].scatter_reduce_(0, image, line, "amin")
    return values, linear


@dataclass(frozen=True, eq=False)
class _Images:
    """Some images and all their competitors.

    Attributes:
        weight: the head, (classes, width).
        bias: (classes,).
        edited: which rows move.
        knots: of the direction.
        x: head inputs.
        labels: the class of each image.
    """

    weight: Tensor
    bias: Float64[Tensor, " classes"]
    edited: Bool[Tensor, " classes"]
    knots: Knots
    x: Float64[Tensor, "images width"]
    labels: Int64[Tensor, " images"]

    @cached_property
    def own_moving(self) -> Float64[Tensor, "images width"]:
        """The part of the label's row that the edit scales."""
        return self.weight[self.labels].double() * self.edited[self.labels, None]

    @cached_property
    def own_still(self) -> Float64[Tensor, " images"]:
        """What of the label's logit does not depend on the strength."""
        still = self.weight[self.labels].double() * ~self.edited[self.labels, None]
        return self.bias[self.labels] + (self.x * still).sum(1)

    def problems(self, mode: Mode) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (image, contributions, height) of all competitors that may come first."""
        yield from self._still()
        image, rival, lost = self._candidates(mode)
        (known,) = lost.nonzero(as_tuple=True)
        # What is won already needs no sums: a problem without contributions says it.
        yield known, self.x.new_zeros(len(known), self.x.shape[1]), self.x.new_zeros(len(known))
        step = max(1, _CONTRIBUTIONS // self.x.shape[1])
        for some, other in zip(*(torch.split(each, step) for each in (image, rival)), strict=True):
            difference = self.own_moving[some] - self.weight[other].double()
            yield some, self.x[some] * difference, self.own_still[some] - self.bias[other]

    def _still(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the highest of the competitors that stand still: the others never matter."""
        if bool(self.edited.all()):
            return
        logits = torch.addmm(self.bias, self.x, self.weight.double().T)
        logits[:, self.edited] = -torch.inf
        logits.scatter_(1, self.labels[:, None], -torch.inf)
        highest = logits.amax(1)
        (some,) = (highest > -torch.inf).nonzero(as_tuple=True)
        terms = self.x[some] * self.own_moving[some]
        yield some, terms, self.own_still[some] - highest[some]

    def _candidates(self, mode: Mode) -> tuple[Tensor, Tensor, Tensor]:
        """Return (image, rival) of the moving competitors that no bound rules out.

        And which images some rival surely wins without any edit: they have no candidates.
        """
        rivals = self.edited.nonzero()[:, 0]
        # By kind of root and image: a strength by which some rival has surely arrived. It falls
        # from chunk to chunk, so what was kept is compared once more at the end.
        ceiling = torch.full((2, len(self.x)), torch.inf, dtype=torch.float64)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        entries = len(self.x) * (len(self.knots.reach) + 1)
        for ids in torch.split(rivals, max(1, _ENTRIES // entries)):
            earliest, surely = self._bounds(ids, mode)
            ceiling = torch.minimum(ceiling, surely.amin(2))
            image, at = _within(earliest, ceiling[:, :, None]).nonzero(as_tuple=True)
            kept.append((image, ids[at], earliest[:, image, at]))
        image, rival = (torch.cat([part[index] for part in kept]) for index in (0, 1))
        lost = ceiling[0] == 0
        earliest = torch.cat([part[2] for part in kept], 1)
        maybe = _within(earliest, ceiling[:, image]) & ~lost[image]
        return image[maybe], rival[maybe], lost

    def _bounds(self, ids: Int64[Tensor, " rivals"], mode: Mode) -> tuple[Tensor, Tensor]:
        """Return the least strengths at which rivals may arrive, and those at which they surely do.

        Both (2, images, rivals): exactly, and on the first line.
        """
        knots = self.knots
        offset, slope, mass = self._sums(self.weight[ids].double())
        height = self.own_still[:, None] - self.bias[ids]
        # Products of matrices add in another order than the solver does. What is within rounding of
        # a bound counts as undecided: that costs a solution, never an answer.
        # The first part covers what the solver takes for reached (1e-12 of the way down) and the
        # slack of its own bound; the second the rounding of two sums of so many terms, each of
        # which is off by at most 1.1e-16 of the mass for every term.
        slack = (mass.sum(0) + height.abs()) * (4e-12 + 4e-15 * self.x.shape[1])
        # The positive contributions are half of all and their absolute values; of a difference the
        # latter are at most the sum of both logits'.
        rising = (mass[1:] + offset[1:]) / 2
        offset, slope = offset.cumsum(0) + height, slope.cumsum(0)
        start, fall = offset[-1], slope[-1] if mode == "suppress" else -slope[-1]
        if not bool(start.isfinite().all()):
            raise InputError("a weight, bias or activation is not finite: record them again")
        # The first line, with everything rounded early or late.
        steep = slack * float(knots.reach.max())
        # Both divisions lean to their own side: the least strength divides by more, the sure one by
        # less.
        earliest = torch.where(
            fall > -steep, (start - slack).clamp(min=0) / (fall + steep), torch.inf
        )
        surely = torch.where(fall > steep, (start + slack).clamp(min=0) / (fall - steep), torch.inf)
        earliest[start <= slack], surely[start <= -slack] = 0.0, 0.0
        on_line = earliest, surely
        if mode == "suppress":
            # As in `Contributions.first_root`: the ends of each block, and its bound between them.
            low = offset[:-1] - knots.strengths[:, :1, None] * slope[:-1]
            high = offset[1:] - knots.strengths[:, -1:, None] * slope[1:]
            bound = torch.minimum(low, high) - knots.bend[:, None, None] * rising
            # A root that a block answers for lies on a segment that ends in it. The first of these
            # starts at the largest knot of the next block.
            begin = torch.cat([knots.strengths[1:, 0], knots.strengths.new_zeros(1)])[:, None, None]
            earliest = _least(begin, bound <= slack)
            surely = torch.minimum(
                _least(knots.strengths[:, :1, None], low <= -slack),
                _least(knots.strengths[:, -1:, None], high <= -slack),
            )
            earliest[start <= slack], surely[start <= -slack] = 0.0, 0.0
        both = torch.stack([earliest, on_line[0]]), torch.stack([surely, on_line[1]])
        for each in both:  # the label is not its own rival
            each[:, ids == self.labels[:, None]] = torch.inf
        return both

    def _sums(self, rows: Float64[Tensor, "rivals width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return $u$, $u|c|$ and at least $|u|$, each (1 + blocks, images, rivals).

        Summed over the columns without a knot, then over each block of columns.
        """
        parts = [
            block.against(_by_block(rows, columns))
            for block, columns in zip(self._blocks, self._columns, strict=True)
        ]
        return (
            torch.cat([part[0] for part in parts]),
            torch.cat([part[1] for part in parts]),
            torch.cat([part[2] for part in parts]),
        )

    @property
    def _columns(self) -> tuple[Tensor, Tensor]:
        """The columns without a knot as one block, and the blocks of the others."""
        return self.knots.rest[None], self.knots.columns.view(-1, BLOCK)

    @cached_property
    def _blocks(self) -> tuple["_Blocks", "_Blocks"]:
        x, own = (
            [_by_block(each, columns) for columns in self._columns]
            for each in (self.x, self.own_moving)
        )
        # The padding repeats a column, which is to count once.
        x[1][0, :, : self.knots.padding] = 0
        return (
            _Blocks.of(x[0], own[0], self.knots.rest_reach[None]),
            _Blocks.of(x[1], own[1], self.knots.reach),
        )


@dataclass(frozen=True, eq=False)
class _Blocks:
    """What blocks of columns contribute to the labels' logits, and what they need for the rivals'.

    Attributes:
        x: activations, (blocks, images, columns).
        reaching: activations times reach.
        sums: $u$, $u|c|$ and $|u|$ of the labels, each (blocks, images, 1).
    """

    x: Tensor
    reaching: Tensor
    sums: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, x: Tensor, own: Tensor, reach: Tensor) -> "_Blocks":
        reaching, terms = x * reach[:, None], x * own
        return cls(
            x, reaching,
            (
                terms.sum(-1, keepdim=True),
                (reaching * own).sum(-1, keepdim=True),
                terms.abs().sum(-1, keepdim=True),
            ),
        )  # fmt: skip

    def against(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of differences from rivals' rows, (blocks, rivals, columns)."""
        other = rows.transpose(1, 2)
        offset, slope, mass = self.sums
        return (
            offset - self.x @ other,
            slope - self.reaching @ other,
            mass + self.x.abs() @ other.abs(),
        )


def _by_block(matrix: Tensor, columns: Int64[Tensor, "blocks columns"]) -> Tensor:
    """Return columns of a matrix as (blocks, rows, columns)."""
    picked = matrix[:, columns.reshape(-1)].view(len(matrix), *columns.shape)
    return picked.transpose(0, 1).contiguous()


def _least(strengths: Tensor, where: Tensor) -> Tensor:
    """Return by image and rival the least strength of the blocks where something holds."""
    return torch.where(where, strengths, torch.inf).amin(0)


def _within(earliest: Tensor, ceiling: Tensor) -> Tensor:
    """Say which competitors may come first, exactly or on the first line."""
    return ((earliest <= ceiling) & earliest.isfinite()).any(0)
