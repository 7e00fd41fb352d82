"""MP-SAE: the code is found atom by atom, each explaining what the ones before left over."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Learner, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import at_least, at_least_one, fits, flag
from salve_plugin.discover.learners.pursuit import (
    Pursuit,
    gram_rows,
    pursue,
    pursuit_code,
    solved,
)
from salve_plugin.discover.learners.registry import register


@register
@dataclass(frozen=True)
class MatchingPursuit(Learner):
    """k times: c = r Vᵀ, j = argmax c, z_j ← z_j + c_j, r ← r − c_j d_j, from r = x − b_d.

    There is no encoder to learn: it is the transpose of the atoms, and the loss ‖r‖² is
    differentiated through the coefficients of the chosen atoms. With unit atoms each step lowers
    ‖r‖² by c_j², so that, unlike with TopK, a larger k never worsens a finished dictionary. Where
    no correlation is positive any more, a row stops early.

    Dead atoms learn to pursue the error that the others leave, as with TopK's auxiliary loss;
    Costa et al. instead push them all towards the mean error.

    Attributes:
        k: steps; a row has at most so many active latents.
        signed: choose by |c| and let codes be negative.
        aux: weight of the auxiliary loss.
        k_aux: steps of the dead latents; None is k.
    """

    name: ClassVar[str] = "mp"
    summary: ClassVar[str] = "matching pursuit: each latent explains what those before left over"
    source: ClassVar[str] = "Costa, Fel et al. 2025, From flat to hierarchical: MP-SAE"
    costly: ClassVar[Mapping[str, int]] = {"k": 4096}
    l0_control: ClassVar[Literal["k", "weight"] | None] = "k"
    k: int = 32
    signed: bool = False
    aux: float = 1 / 32
    k_aux: int | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        flag(signed=self.signed)
        at_least_one(k=self.k, k_aux=1 if self.k_aux is None else self.k_aux)
        at_least(0, aux=self.aux)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the code of k steps; differentiable in `pre`."""
        return pursuit_code(pre, t["atoms"], self.k, signed=self.signed)

    def prepare(self, start: Start) -> Tensors:
        """Return the atoms and the decoder's bias to train; the encoder follows the atoms.

        Raises:
            InputError: if there are fewer than k latents.
        """
        fits(self.k, start.n_latents)
        return {
            **start.tensors(),
            "encoder_weight": start.atoms.clone(),
            "encoder_bias": torch.zeros(start.n_latents),
        }

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖r‖² + aux · the same for dead atoms pursuing r."""
        target, atoms = step.x - t["decoder_bias"], t["atoms"]
        error, pursuit = _left_over(target, atoms, self.k, self.signed)
        size = error.square().sum(-1).mean()
        loss = size
        dead = step.dead.nonzero().flatten()
        # Asked of all processes: one that alone went past this would wait in the exchange below for
        # ever.
        if self.aux and len(dead) and bool(step.team.sum(size) > 0):
            missed, _ = _left_over(error.detach(), atoms[dead], self.k_aux or self.k, True)
            total = step.team.mean(size)
            loss = loss + self.aux * missed.square().sum(-1).mean() / total
        return Outcome(loss, (pursuit.dense(pursuit.values, len(atoms)) != 0).sum(0))

    def constrain(self, t: Tensors) -> None:
        """Bring the atoms to unit norm, and the encoder to the atoms."""
        super().constrain(t)
        t["encoder_weight"].copy_(t["atoms"])
        t["encoder_bias"].copy_(-(t["atoms"] @ t["decoder_bias"]))


def _left_over(
    target: Float[Tensor, "rows width"],
    atoms: Float[Tensor, "latents width"],
    k: int,
    signed: bool,
) -> tuple[Float[Tensor, "rows width"], Pursuit]:
    """Return what pursuit leaves of the rows, differentiable in rows and atoms."""
    with torch.no_grad():
        rows_of = gram_rows(atoms, k * len(target))
        pursuit = pursue((target @ atoms.T).to(atoms.dtype), rows_of, k, signed=signed)
    # Which atoms are taken has no gradient. What they take has: the triangular system of the
    # chosen ones is solved again, differentiably, at k² products a row instead of a pass over all.
    chosen = functional.embedding(pursuit.latents, atoms)
    correlations = (chosen @ target.unsqueeze(-1)).squeeze(-1)
    triangle = chosen @ chosen.mT
    values = solved(correlations.to(atoms.dtype), triangle.to(atoms.dtype), pursuit.on)
    return target - (values.unsqueeze(1) @ chosen).squeeze(1), pursuit
