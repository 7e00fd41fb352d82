"""Feature Choice: latents choose their rows, so that none goes without."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_at, pre_activations
from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.kernels.squared_error import misfit
from salve_plugin.discover.learners.auxiliary import apart, dead_loss
from salve_plugin.discover.learners.base import Architecture, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.batch_topk import move_mean, smallest_kept
from salve_plugin.discover.learners.mutual_choice import MutualChoice, share_of_rows
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.zipf import places, ranking, under_used

THRESHOLD_MOMENTUM = 0.9
"""Share that a latent's threshold keeps in each step. A slower one lags behind: after 400 steps on
late-layer features, one in ten ended above all values of its latent."""


@register
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
        k_aux: latents of a row that predict its error; None is all that learn in a step.
        aux_zipf: whether rare latents take the dead ones' place in the auxiliary loss.
        exponent: of the Zipf law; 0 treats all latents alike.
        shift: added to ranks in the Zipf law; they count from 1.
    """

    name: ClassVar[str] = "feature_choice"
    summary: ClassVar[str] = (
        "every latent chooses its rows, in Zipf or equal shares: none goes without"
    )
    saelens: ClassVar[Architecture | None] = "jumprelu"

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
            # Counted over all processes: what is negative in the rows of one may be positive
            # elsewhere.
            positive = Code(functional.relu(support.gather(pre)), support).counts()
            signed = step.team.sum(positive) == 0
        t, dead = apart(t, among, self.aux, step.random)
        values = encode_at(step.x, t["encoder_weight"], t["encoder_bias"], support, pre)
        code = Code(torch.where(signed[support.latents], values, functional.relu(values)), support)
        loss, error = misfit(step.x, code, t["atoms"], t["decoder_bias"])
        if dead is not None:
            loss = loss + self.aux * dead_loss(dead, step, error, self.k_aux)
        return Outcome(loss, code.counts())

    def select(self, pre: Float[Tensor, "rows latents"], t: Tensors, step: Step) -> Support:
        """Keep the largest of each latent; move thresholds and densities."""
        # A latent's best rows are those of the whole batch: each process ranks all of them, and
        # takes its own rows out of the same choice.
        everyone = step.team.gather(pre)
        level = smallest_kept(pre, self.k * len(pre), t["level"], step)
        move_mean(t["density"], share_of_rows((pre >= level).sum(0), step), step)
        move_mean(t["level"], torch.where(level < torch.inf, level, t["level"]), step)
        by_rank = places(
            pre.shape[1], self.k * len(everyone), len(everyone), self.exponent, self.shift
        )
        # Places belong to ranks, the densest latent first: this hands them to the latents.
        own = torch.empty_like(by_rank)
        own[ranking(t["density"])] = by_rank
        kept, smallest = column_choice(everyone, own.to(pre.device))
        # A latent without a place has kept nothing: its threshold stays.
        smallest = torch.where(smallest < torch.inf, smallest.clamp(min=0), t["threshold"])
        move_mean(t["threshold"], smallest, step, THRESHOLD_MOMENTUM)
        first = step.team.rank * len(pre)
        return Support.of_mask(kept[first : first + len(pre)])


def column_choice(
    scores: Float[Tensor, "rows latents"], places: Int[Tensor, " latents"]
) -> tuple[Bool[Tensor, "rows latents"], Float[Tensor, " latents"]]:
    """Keep the `places` largest scores of each column.

    Returns:
        Which are kept, and the smallest kept of each column: infinite if none is.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    smallest = torch.full_like(scores[0], torch.inf)
    # One sort for all columns would sort every one as far as the longest needs.
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
