r"""Exact first roots of the logit as a function of the suppression's strength.

Under suppression the logit of an image is $z(\alpha) = b + \sum_j u_j \max(0, 1-\alpha|c_j|)$ with
$u = w \circ a$: continuous, piecewise linear, with a knot at every $1/|c_j|$ where a column is used
up. It is not monotone when contributions have both signs, so *every* knot matters for the first
root. Columns are sorted by $|c|$, ascending, once for all images; then with the prefix sums
$S_q = \sum_{j<q} u_j$ and $T_q = \sum_{j<q} u_j|c_j|$ the logit at knot $q$ is
$b + S_q - T_q/|c_q|$, and the root on the segment before it is $(b + S_{q+1})/T_{q+1}$.

Fresh sums in float64 are used everywhere, never running subtraction, whose residue makes roots
where there are none. Most knots are never looked at: columns come in blocks, and within a block
the logit falls below its chord by no more than what the block's positive contributions can bend it,
a bound that rules out nearly all blocks by three sums each.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

BLOCK = 64
LIMIT = 1e3
r"""Roots are sought up to $\alpha \max|c| = 10^3$."""
_WORKSPACE = 1 << 21  # bytes of float64 scratch a thread: they stay in the processor's cache
_ROUNDING = 1e-12  # values within this share of the way down count as reached


@dataclass(frozen=True)
class Knots:
    """The sorted breakpoints of one direction, shared by all images and weights.

    Attributes:
        columns: of the features that can be used up within `LIMIT`, by ascending reach, padded in
            front to whole blocks; at least one entry is padding.
        padding: how many entries in front are padding.
        reach: |c| of `columns`, (blocks, BLOCK).
        strengths: the knots 1/|c|, descending, (blocks, BLOCK); of the padding: the limit.
        bend: by block, the largest gap between a unit contribution and its chord over the block.
        rest: the other columns: |c| zero or too small for a knot below the limit.
        rest_reach: |c| of `rest`.
        limit: the largest strength considered.
    """

    columns: Int64[Tensor, " padded"]
    padding: int
    reach: Float64[Tensor, "blocks block"]
    strengths: Float64[Tensor, "blocks block"]
    bend: Float64[Tensor, " blocks"]
    rest: Int64[Tensor, " rest"]
    rest_reach: Float64[Tensor, " rest"]
    limit: float

    @classmethod
    def of(cls, direction: Float[Tensor, " width"]) -> "Knots":
        """Sort the columns of a direction that is not zero everywhere."""
        # Stable: columns of equal reach keep one order on every machine, and so do their sums.
        reach, order = direction.detach().double().abs().sort(stable=True)
        limit = LIMIT / float(reach[-1])
        # Columns whose knot lies beyond the limit are never used up: straight lines, summed once.
        first = int((reach * limit <= 1).sum())
        # Always at least one: the logit at the limit itself is then the value of a knot.
        padding = BLOCK - (len(reach) - first) % BLOCK
        # Padding has weight zero and its knot at the limit, so it neither moves a logit nor bends
        # one.
        columns = torch.cat([order[-1:].expand(padding), order[first:]])
        knotted = torch.cat([reach.new_full((padding,), 1 / limit), reach[first:]])
        strengths = torch.cat([reach.new_full((padding,), limit), 1 / reach[first:]])
        knotted, strengths = knotted.view(-1, BLOCK), strengths.view(-1, BLOCK)
        start, end = strengths[:, -1:], strengths[:, :1]
        # A column is used up inside its block: the corner of 1 - α|c| lies below the chord from the
        # block's start to its end by this much, at its own knot.
        # Where all knots of a block coincide the gap is 0 / 1e-300 = 0, not 0 / 0.
        gap = (1 - start * knotted) * (end - strengths) / (end - start).clamp(min=1e-300)
        return cls(
            columns, padding, knotted, strengths, gap.amax(1).clamp(min=0), order[:first],
            reach[:first], limit,
        )  # fmt: skip

    def contributions(
        self, activations: Float[Tensor, "images width"], weight: Float64[Tensor, " width"]
    ) -> "Contributions":
        r"""Return the block sums of $u = w \circ a$; the one pass over all activations.

        Args:
            activations: (images, width).
            weight: (width,).
        """
        factors = weight[self.columns]
        factors[: self.padding] = 0
        images, blocks = len(activations), len(self.reach)
        sums = torch.empty(3, images, blocks, dtype=torch.float64)
        cached = _WORKSPACE * torch.get_num_threads()
        # Sixteen bytes an entry, for the two float64 buffers below.
        size = min(images, max(16, cached // (16 * len(factors))))
        # Rounding to 16 bits would exceed what the bound below is rounded up by.
        roughly = torch.promote_types(activations.dtype, torch.float32)
        rough = factors.to(roughly)
        # Allocated once: fresh pages would cost more than the arithmetic.
        near = activations.new_empty(size, activations.shape[1])
        used = activations.new_empty(size, len(factors))
        bent = activations.new_empty(size, len(factors), dtype=roughly)
        terms, other = factors.new_empty(2, size, len(factors)).unbind()
        for first in range(0, images, size):
            part = slice(first, min(first + size, images))
            rows = slice(0, part.stop - first)
            near, used, bent, terms, other = (m[rows] for m in (near, used, bent, terms, other))
            by_block = (part.stop - first, blocks, BLOCK)
            # Picking columns jumps about: first bring the rows into cache in one go.
            torch.index_select(near.copy_(activations[part]), 1, self.columns, out=used)
            torch.mul(terms.copy_(used), factors, out=terms)
            torch.sum(terms.view(by_block), -1, out=sums[0, part])
            torch.mul(terms, self.reach.view(-1), out=other)
            torch.sum(other.view(by_block), -1, out=sums[1, part])
            # Only a bound: single precision is enough, rounded up.
            torch.mul(used, rough, out=bent).clamp_(min=0)
            sums[2, part] = bent.view(by_block).sum(-1)
        # Prefix sums run from the smallest reach up: at a knot, what is still alive are the columns
        # of smaller reach, so no column is ever subtracted again.
        rest = activations[:, self.rest] * weight[self.rest]
        start = rest.sum(1, keepdim=True), (rest * self.rest_reach).sum(1, keepdim=True)
        return Contributions(
            knots=self,
            activations=activations,
            factors=factors.view(blocks, BLOCK),
            offset=torch.cat([start[0], sums[0]], 1).cumsum(1),
            slope=torch.cat([start[1], sums[1]], 1).cumsum(1),
            rising=sums[2].mul_(1 + 1e-4),
        )


@dataclass(frozen=True)
class Contributions:
    """What the columns contribute to one logit of each image, summed by blocks.

    Attributes:
        knots: the breakpoints.
        activations: the images, (images, width).
        factors: the weight in the order of the knots, (blocks, BLOCK); zero at the padding.
        offset: prefix sums of $u$ up to each block's start, (images, blocks + 1).
        slope: likewise of $u|c|$.
        rising: at least the sum of the positive $u$ of each block, (images, blocks).
    """

    knots: Knots
    activations: Float[Tensor, "images width"]
    factors: Float64[Tensor, "blocks block"]
    offset: Float64[Tensor, "images ends"]
    slope: Float64[Tensor, "images ends"]
    rising: Float64[Tensor, "images blocks"]

    def total(self) -> Float64[Tensor, " images"]:
        r"""Return $\sum_j u_j$: the logit without bias at strength 0."""
        return self.offset[:, -1]

    def steepness(self) -> Float64[Tensor, " images"]:
        r"""Return $\sum_j u_j|c_j|$: how fast the logit falls at strength 0."""
        return self.slope[:, -1]

    def first_root(self, height: Float64[Tensor, " images"]) -> Float64[Tensor, " images"]:
        r"""Return the smallest $\alpha$ where $\sum_j u_j\max(0,1-\alpha|c_j|)$ is $\le -$height.

        Zero where that holds at once, infinite where it never does up to the limit.
        """
        # A logit that ends at exactly zero must not be missed for its last bit: what is within
        # rounding of zero counts as reached. The bound gets slack on top, since sums over blocks
        # are rounded otherwise than sums up to a knot, and a block that is ruled out is never
        # looked at again.
        knots, start = self.knots, self.total() + height
        near = start * _ROUNDING
        slack = near.abs() + self.rising.sum(-1) * _ROUNDING
        level = self.offset + height[:, None]
        # The logit at the ends of each block, by descending strength: sums of what is alive there,
        # each with a factor from 0 to 1, so that a large strength brings no cancellation.
        low = level[:, :-1] - knots.strengths[:, 0] * self.slope[:, :-1]
        high = level[:, 1:] - knots.strengths[:, -1] * self.slope[:, 1:]
        bound = torch.minimum(low, high) - knots.bend * self.rising
        below = (low <= near[:, None] - slack[:, None]).int()
        # Blocks of larger strength than one that ends below zero cannot hold the first root.
        settled = below.flip(1).cumsum(1).flip(1) - below > 0
        candidate = (bound <= (near + slack)[:, None]) & ~settled & (start > 0)[:, None]
        image, block = candidate.nonzero(as_tuple=True)
        roots = torch.full_like(start, torch.inf)
        # Of the roots in several candidate blocks the smallest is the first.
        roots.scatter_reduce_(0, image, self._roots_in(image, block, level, near), "amin")
        return torch.where(start <= 0, 0.0, roots)

    def _roots_in(
        self,
        image: Int64[Tensor, " pairs"],
        block: Int64[Tensor, " pairs"],
        level: Float64[Tensor, "images ends"],
        near: Float64[Tensor, " images"],
    ) -> Float64[Tensor, " pairs"]:
        """Return the first root on the segments that end in one block, for pairs of the two."""
        knots = self.knots
        # Flat indices: indexing by two tensors is three times slower.
        place = knots.columns.view(-1, BLOCK).index_select(0, block)
        place += image[:, None] * self.activations.shape[1]
        used = self.activations.reshape(-1).index_select(0, place.view(-1)).view_as(place)
        terms = used * self.factors.index_select(0, block)
        slopes = terms * knots.reach.index_select(0, block)
        offset = level[image, block][:, None] + terms.cumsum(1)
        slope = self.slope[image, block][:, None] + slopes.cumsum(1)
        values = offset - terms - knots.strengths.index_select(0, block) * (slope - slopes)
        # The largest column index has the smallest strength: the last hit is the first root.
        hit = values <= near[image][:, None]
        at = BLOCK - 1 - hit.flip(1).to(torch.uint8).argmax(1, keepdim=True)
        flat = knots.strengths.view(-1)
        knot = block * BLOCK + at[:, 0]
        end = flat[knot]
        start = torch.where(knot + 1 < len(flat), flat[(knot + 1).clamp(max=len(flat) - 1)], 0.0)
        top, fall = offset.gather(1, at)[:, 0], slope.gather(1, at)[:, 0]
        # The quotient may leave its segment by rounding; the root does not.
        # A segment that comes down to zero falls, but for rounding: then its end is the root.
        root = torch.where(fall > 0, top / fall, end).clamp(min=start).minimum(end)
        return torch.where(hit.any(1), root, torch.inf)
