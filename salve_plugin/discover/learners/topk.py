"""TopK: exactly k latents in each row, and an auxiliary loss that brings dead ones back."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_at, pre_activations
from salve_plugin.discover.kernels.screening import pays, screened
from salve_plugin.discover.kernels.selection import largest
from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.kernels.squared_error import misfit
from salve_plugin.discover.learners.auxiliary import apart, dead_loss
from salve_plugin.discover.learners.base import Architecture, Learner, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import at_least, at_least_one, fits
from salve_plugin.discover.learners.registry import register


@register
@dataclass(frozen=True)
class TopK(Learner):
    """z keeps the k largest of relu(E x + b_e) in each row; loss ‖x − x̂‖² + aux · AuxK.

    Attributes:
        k: active latents of a row; fewer where fewer pre-activations are positive.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step, at
            most a sixteenth of all latents, or 64.
    """

    name: ClassVar[str] = "topk"
    summary: ClassVar[str] = (
        "keeps the k largest activations of each row; dead latents learn errors"
    )
    source: ClassVar[str] = "Gao et al. 2024, Scaling and evaluating sparse autoencoders"
    saelens: ClassVar[Architecture | None] = "topk"
    l0_control: ClassVar[Literal["k", "weight"] | None] = "k"
    signed: ClassVar[bool] = False
    by_size: ClassVar[bool] = True  # it keeps the largest of each row; other choices say False
    k: int = 32
    aux: float = 1 / 32
    k_aux: int | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        at_least_one(k=self.k, k_aux=1 if self.k_aux is None else self.k_aux)
        at_least(0, aux=self.aux)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Keep the k largest positive pre-activations of each row."""
        values, latents = pre.topk(min(self.k, pre.shape[-1]), dim=-1)
        # Rectified after the choice: where fewer than k are positive, a row would else get negative
        # codes.
        return torch.zeros_like(pre).scatter(-1, latents, functional.relu(values))

    def initial_code(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """Keep the k largest positive pre-activations of each row."""
        return TopK.activate(self, {}, pre)

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors.

        Raises:
            InputError: if there are fewer than k latents.
        """
        fits(self.k, start.n_latents)
        return start.tensors()

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² + aux · AuxK."""
        # Before the tensors are parted: the choice has no gradient and reads them whole.
        support, pre = self.kept(t, step)
        t, dead = apart(t, step.dead, self.aux, step.random)
        values = encode_at(step.x, t["encoder_weight"], t["encoder_bias"], support, pre)
        code = Code(values if self.signed else functional.relu(values), support)
        loss, error = self.misfit(t, step.x, code)
        if dead is not None:
            loss = loss + self.aux * dead_loss(dead, step, error, self.k_aux, signed=self.signed)
        return Outcome(loss, code.counts())

    def misfit(
        self, t: Tensors, x: Float[Tensor, "rows width"], code: Code
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows width"]]:
        """Return the mean over rows of ‖x − x̂‖², and x − x̂."""
        return misfit(x, code, t["atoms"], t["decoder_bias"])

    @torch.no_grad()
    def kept(self, t: Tensors, step: Step) -> tuple[Support, Float[Tensor, "rows latents"] | None]:
        """Return which latents of a batch are kept, and all pre-activations if they were needed."""
        x, weight, bias = step.x, t["encoder_weight"], t["encoder_bias"]
        # Screening finds the largest values: who chooses by something else needs all of them.
        if self.by_size and pays(x, len(weight), self.k):
            support = screened(x, weight, bias, self.k, step.scratch)
            if support is not None:
                return support, None
        # A rough matrix will do where `select` returns the values that it read, so that these alone
        # are converted; others gather from it, in the rows' type.
        pre = pre_activations(x, weight, bias, step.scratch, rough=self.by_size)
        return self.select(pre, t, step), pre

    def select(self, pre: Float[Tensor, "rows latents"], t: Tensors, step: Step) -> Support:
        """Return which latents of a training batch are kept."""
        values, latents = largest(pre, self.k)
        return Support.of_indices(latents, pre.shape[1], values.to(step.x.dtype), step.scratch)
