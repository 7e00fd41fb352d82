"""Feature Choice: latents choose their rows, so that none goes without; and Mutual Choice."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_at, pre_activations
from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.kernels.squared_error import misfit
from salve_plugin.discover.learners.auxiliary import apart, dead_loss
from salve_plugin.discover.learners.base import Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.batch_topk import MOMENTUM, BatchTopK, smallest_kept
from salve_plugin.discover.learners.checks import at_least, flag

THRESHOLD_MOMENTUM = 0.9
"""Share that a latent's threshold keeps in each step. A slower one lags behind: after 400 steps on
late-layer features, one in ten ended above all values of its latent."""

BISECTIONS = 100
"""Halvings of the interval in which the factor of the shares lies: down to rounding."""


@dataclass(frozen=True)
class MutualChoice(BatchTopK):
    """BatchTopK under the name that Ayonrinde gives it, with his auxiliary loss as an option.

    Rows and latents choose each other: the k · rows largest of relu(E x + b_e) of a batch are
    kept. With `aux_zipf`, the latents that learn to predict the error are not the dead ones but
    all that are wanted more rarely than the Zipf law says for their rank (see `under_used`).

    Attributes:
        k: active latents of a row, on average.
        aux: weight of the auxiliary loss.
        k_aux: latents of a row that predict its error; None is 4 k, at most half the width.
        aux_zipf: whether rare latents take the dead ones' place in the auxiliary loss.
        exponent: of the Zipf law; 0 expects the same of every latent.
        shift: added to ranks in the Zipf law; they count from 1.
    """

    name: ClassVar[str] = "mutual_choice"
    summary: ClassVar[str] = "BatchTopK in which rare latents may learn errors before they are dead"
    source: ClassVar[str] = "after Ayonrinde 2024, Adaptive sparse allocation"
    aux_zipf: bool = False
    exponent: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        flag(aux_zipf=self.aux_zipf)
        super().__post_init__()
        at_least(0, exponent=self.exponent, shift=self.shift)

    def prepare(self, start: Start) -> Tensors:
        """Return the tensors of BatchTopK, and how often each latent is wanted (latents,).

        Raises:
            InputError: if there are fewer than k latents.
        """
        return {**super().prepare(start), "density": torch.zeros(start.n_latents)}

    def select(self, pre: Float[Tensor, "rows latents"], t: Tensors, step: Step) -> Support:
        """Keep the largest positive values of the batch; move threshold and densities."""
        support = super().select(pre, t, step)
        _move(t["density"], _share_of_rows(support.counts(), step), step)
        return support

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² + aux · AuxK, of dead or of rare latents."""
        if self.aux_zipf:
            rare = under_used(t["density"], self.k, self.exponent, self.shift)
            step = replace(step, dead=rare)
        return super().loss(t, step)


@dataclass(frozen=True)
class FeatureChoice(MutualChoice):
    """Each latent l keeps its m_l largest pre-activations of a batch, Σ m_l = k · rows.

    m_l is in proportion to (rank + shift)^-exponent: the first rank is that of the latent which is
    most often among the k · rows largest of a batch (a running mean). An `exponent` of 0 gives all
    of them the same. Every m_l is at least 1, if there is a place for each, and at most the number
    of rows. Values are rectified after the choice, except those of a latent which is negative on
    the whole batch: they keep their sign, for their positive parts would have no gradient, and the
    latent would be dead. The loss is that of TopK.

    The finished dictionary does not look at other rows: a latent keeps what exceeds its own
    threshold, the running mean of the smallest value that it kept in training.

    Attributes:
        k: active latents of a row, on average.
        aux: weight of the auxiliary loss.
        k_aux: latents of a row that predict its error; None is 4 k, at most half the width.
        aux_zipf: whether rare latents take the dead ones' place in the auxiliary loss.
        exponent: of the Zipf law; 0 treats all latents alike.
        shift: added to ranks in the Zipf law; they count from 1.
    """

    name: ClassVar[str] = "feature_choice"
    summary: ClassVar[str] = (
        "every latent chooses its rows, in Zipf or equal shares: none goes without"
    )

    def prepare(self, start: Start) -> Tensors:
        """Return the tensors of MutualChoice, and the smallest value that is wanted, `level`.

        Raises:
            InputError: if there are fewer than k latents.
        """
        return {**super().prepare(start), "level": torch.zeros(())}

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² + aux · AuxK, of dead or of rare latents."""
        weight, bias = t["encoder_weight"], t["encoder_bias"]
        among = step.dead
        if self.aux_zipf:
            among = under_used(t["density"], self.k, self.exponent, self.shift)
        with torch.no_grad():
            pre = pre_activations(step.x, weight, bias, step.scratch)
            support = self.select(pre, t, step)
            positive = Code(functional.relu(support.gather(pre)), support).counts()
            signed = step.team.sum(positive) == 0
        t, dead = apart(t, among, self.aux)
        values = encode_at(step.x, t["encoder_weight"], t["encoder_bias"], support, pre)
        code = Code(torch.where(signed[support.latents], values, functional.relu(values)), support)
        loss, error = misfit(step.x, code, t["atoms"], t["decoder_bias"])
        if dead is not None:
            k_aux = self.dead_places(step.x.shape[1])
            loss = loss + self.aux * dead_loss(dead, step, pre, error, k_aux)
        return Outcome(loss, code.counts())

    def select(self, pre: Float[Tensor, "rows latents"], t: Tensors, step: Step) -> Support:
        """Keep the largest of each latent; move thresholds and densities."""
        everyone = step.team.gather(pre)
        level = smallest_kept(pre, self.k * len(pre), t["level"], step)
        _move(t["density"], _share_of_rows((pre >= level).sum(0), step), step)
        _move(t["level"], torch.where(level < torch.inf, level, t["level"]), step)
        by_rank = places(
            pre.shape[1], self.k * len(everyone), len(everyone), self.exponent, self.shift
        )
        own = torch.empty_like(by_rank)
        own[_ranking(t["density"])] = by_rank
        kept, smallest = column_choice(everyone, own.to(pre.device))
        # A latent without a place has kept nothing: its threshold stays.
        smallest = torch.where(smallest < torch.inf, smallest.clamp(min=0), t["threshold"])
        _move(t["threshold"], smallest, step, THRESHOLD_MOMENTUM)
        first = step.team.rank * len(pre)
        return Support.of_mask(kept[first : first + len(pre)])


def places(
    n_latents: int, total: int, rows: int, exponent: float, shift: float
) -> Int[Tensor, " latents"]:
    """Return how many rows the latent of each rank gets: whole numbers that add up to `total`.

    They are in proportion to (rank + shift)^-exponent, except that none is above `rows` nor, if
    `total` is enough for it, below 1. Largest remainders are rounded up.

    >>> places(4, 12, 8, 1.0, 0.0).tolist()
    [6, 3, 2, 1]
    >>> places(4, 12, 4, 1.0, 0.0).tolist()
    [4, 4, 2, 2]
    >>> places(4, 6, 8, 0.0, 0.0).tolist()
    [2, 2, 1, 1]

    Args:
        n_latents: number of latents.
        total: number of places, at most n_latents · rows.
        rows: of the batch.
        exponent: of the Zipf law.
        shift: added to ranks, which count from 1.
    """
    return torch.tensor(_places(n_latents, total, rows, exponent, shift))


@lru_cache(maxsize=8)
def _places(n: int, total: int, rows: int, exponent: float, shift: float) -> list[int]:
    law = zipf_law(n, exponent, shift)
    least = 1 if total >= n else 0
    low, high = 0.0, total / float(law.min())
    for _ in range(BISECTIONS):
        factor = (low + high) / 2
        if (factor * law).clamp(least, rows).sum() < total:
            low = factor
        else:
            high = factor
    exact = (high * law).clamp(least, rows)
    # Rounding would leave 2.9999999 where 3 is meant, and its place to another.
    whole = (exact + 1e-9).floor()
    order = (exact - whole).argsort(descending=True, stable=True)
    whole[order[: total - int(whole.sum())]] += 1
    return [int(number) for number in whole]


def zipf_law(n: int, exponent: float, shift: float) -> Float[Tensor, " n"]:
    """Return (rank + shift)^-exponent for ranks 1 to n, made to add up to 1, in float64."""
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    weights = (ranks + shift) ** -exponent
    return weights / weights.sum()


def under_used(
    density: Float[Tensor, " latents"], k: int, exponent: float, shift: float
) -> Bool[Tensor, " latents"]:
    """Say which latents are active more rarely than a Zipf law says for their rank.

    The expected density of rank r is k (r + shift)^-exponent / Σ_q (q + shift)^-exponent, at most
    1: densities add up to k, the active latents of a row (after Ayonrinde 2024, aux_zipf_loss).

    >>> under_used(torch.tensor([0.1, 0.8, 0.7]), 1, 1.0, 0.0)  # expected: 0.545, 0.273, 0.182
    tensor([ True, False, False])

    Args:
        density: share of the rows in which each latent is active; all zero if not yet known, and
            then no latent is under-used.
        k: active latents of a row.
        exponent: of the Zipf law.
        shift: added to ranks, which count from 1.
    """
    expected = torch.empty_like(density)
    law = k * zipf_law(len(density), exponent, shift)
    expected[_ranking(density)] = law.clamp(max=1).to(expected)
    return (density < expected) & density.any()


def column_choice(
    scores: Float[Tensor, "rows latents"], places: Int[Tensor, " latents"]
) -> tuple[Bool[Tensor, "rows latents"], Float[Tensor, " latents"]]:
    """Keep the `places` largest scores of each column.

    Returns:
        Which are kept, and the smallest kept of each column: infinite if none is.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    smallest = torch.full_like(scores[0], torch.inf)
    most = 1
    while bool((places > most // 2).any()):  # columns with about as many places are sorted at once
        columns = ((places > most // 2) & (places <= most)).nonzero().flatten()
        if len(columns):
            best = scores[:, columns].topk(min(most, len(scores)), dim=0)
            inside = torch.arange(len(best.values), device=scores.device)[:, None] < places[columns]
            chosen = torch.zeros_like(scores[:, columns], dtype=torch.bool)
            kept[:, columns] = chosen.scatter(0, best.indices, inside)
            smallest[columns] = best.values.gather(0, places[columns][None] - 1)[0]
        most *= 2
    return kept, smallest


def _ranking(density: Tensor) -> Tensor:
    """Return the latents, the densest first."""
    return density.argsort(descending=True, stable=True)


def _share_of_rows(counts: Tensor, step: Step) -> Tensor:
    return step.team.sum(counts) / (len(step.x) * step.team.size)


def _move(running: Tensor, new: Tensor, step: Step, momentum: float = MOMENTUM) -> None:
    """Move a running mean, in place; the first step sets it."""
    momentum = momentum if step.progress > 0 else 0.0
    running.mul_(momentum).add_(new.to(running), alpha=1 - momentum)
