"""Mutual Choice: rows and latents choose each other, and rare latents may learn the errors."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from salve_plugin.discover.kernels.sparse import Support
from salve_plugin.discover.learners.base import Architecture, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.batch_topk import BatchTopK, move_mean
from salve_plugin.discover.learners.checks import at_least, flag
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.zipf import under_used


@register
@dataclass(frozen=True)
class MutualChoice(BatchTopK):
    """BatchTopK under the name that Ayonrinde gives it, with his auxiliary loss as an option.

    Rows and latents choose each other: the k · rows largest of relu(E x + b_e) of a batch are
    kept. With `aux_zipf`, the latents that learn to predict the error are not the dead ones but
    all that are wanted more rarely than the Zipf law says for their rank (see `under_used`).

    Attributes:
        k: active latents of a row, on average.
        aux: weight of the auxiliary loss.
        k_aux: latents of a row that predict its error; None is all that learn in a step.
        aux_zipf: whether rare latents take the dead ones' place in the auxiliary loss.
        exponent: of the Zipf law; 0 expects the same of every latent.
        shift: added to ranks in the Zipf law; they count from 1.
    """

    name: ClassVar[str] = "mutual_choice"
    summary: ClassVar[str] = "BatchTopK in which rare latents may learn errors before they are dead"
    source: ClassVar[str] = "after Ayonrinde 2024, Adaptive sparse allocation"
    saelens: ClassVar[Architecture | None] = "jumprelu"
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
        move_mean(t["density"], share_of_rows(support.counts(), step), step)
        return support

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² + aux · AuxK, of dead or of rare latents."""
        if self.aux_zipf:
            rare = under_used(t["density"], self.k, self.exponent, self.shift)
            step = replace(step, dead=rare)
        return super().loss(t, step)


def share_of_rows(counts: Int[Tensor, " latents"], step: Step) -> Float[Tensor, " latents"]:
    """Return in which share of all processes' rows each latent is, from this process's counts."""
    return step.team.sum(counts) / (len(step.x) * step.team.size)
