"""BatchTopK: k latents of a row on average, more where the row needs more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.kernels.sparse import Support
from salve_plugin.discover.learners.base import Architecture, Start, Step, Tensors
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.topk import TopK

MOMENTUM = 0.95
"""Share that the running threshold keeps in each step; the first step sets it. The published 0.999
suits runs of 100 000 steps: it would lag behind the whole decay of a short one."""


@register
@dataclass(frozen=True)
class BatchTopK(TopK):
    """Training keeps the k · rows largest of relu(E x + b_e) of a whole batch; loss as TopK.

    The finished dictionary does not look at other rows: it keeps what exceeds the threshold, the
    running mean of the smallest value that training kept.

    Attributes:
        k: active latents of a row, on average.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
    """

    name: ClassVar[str] = "batch_topk"
    summary: ClassVar[str] = "k active latents of a row on average; one threshold when it is used"
    source: ClassVar[str] = "Bussmann, Leask & Nanda 2024, BatchTopK sparse autoencoders"
    saelens: ClassVar[Architecture | None] = "jumprelu"
    extra: ClassVar[Mapping[str, int]] = {"threshold": 1}
    by_size: ClassVar[bool] = False

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Keep what exceeds the threshold."""
        return pre * (pre > t["threshold"])

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors, and the threshold (latents,), which is not trained.

        Raises:
            InputError: if there are fewer than k latents.
        """
        return {**super().prepare(start), "threshold": torch.zeros(start.n_latents)}

    def select(self, pre: Float[Tensor, "rows latents"], t: Tensors, step: Step) -> Support:
        """Keep the largest positive values of the batch, and move the threshold."""
        smallest = smallest_kept(pre, self.k * len(pre), t["threshold"][0], step)
        if bool(smallest < torch.inf):
            old = t["threshold"]
            # The first value is taken whole: a mean that rises from zero would lag, and be a poor
            # guess of what the next steps need to sort.
            old.copy_(torch.where(old > 0, MOMENTUM * old + (1 - MOMENTUM) * smallest, smallest))
        # Infinite where nothing is positive: then nothing is kept.
        return Support.of_mask(pre >= smallest, step.scratch)


def smallest_kept(
    scores: Float[Tensor, "rows latents"],
    count: int,
    guess: Float[Tensor, ""],
    step: Step,
) -> Float[Tensor, ""]:
    """Return the smallest of the largest positive scores of all processes' batches.

    Args:
        scores: of this process's rows.
        count: how many to keep of each process's batch, on average.
        guess: near the result: only scores above 0.8 times it are sorted, unless too few are.
        step: the batch's.

    Returns:
        The value of rank `count` times the number of processes, or the smallest positive score if
        fewer are positive; infinite if none is.
    """
    # The threshold moves little from step to step. Sorting only what is above most of the last one
    # sorts about as many values as are kept, instead of half of all.
    total = count * step.team.size
    candidates = scores[scores > 0.8 * guess]
    above = torch.tensor(len(candidates), device=step.team.device)
    if int(step.team.sum(above)) < total:
        candidates = scores[scores > 0]
    best = candidates.topk(min(total, len(candidates))).values
    # The largest of all processes are among the largest `total` of each. All must gather matrices
    # of one size, so that missing values are zero, which no positive score is.
    if step.team.size > 1:
        padded = best.new_zeros(min(total, scores.numel()))
        padded[: len(best)] = best
        best = step.team.gather(padded)
        best = best[best > 0]
        best = best.topk(min(total, len(best))).values
    return best.min() if len(best) else scores.new_tensor(torch.inf)


def move_mean(
    running: Float[Tensor, "..."],
    value: Float[Tensor, "..."],
    step: Step,
    momentum: float = MOMENTUM,
) -> None:
    """Move a running mean towards a step's value, in place; the first step sets it."""
    momentum = momentum if step.progress > 0 else 0.0
    running.mul_(momentum).add_(value.to(running), alpha=1 - momentum)
