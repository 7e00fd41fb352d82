"""A variational sparse autoencoder, here as a documented negative result."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.sparse import Code
from salve_plugin.discover.learners.abs_topk import AbsTopK
from salve_plugin.discover.learners.auxiliary import apart, dead_loss
from salve_plugin.discover.learners.base import Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import at_least
from salve_plugin.discover.learners.registry import register

LOG_VARIANCE, LOWEST, HIGHEST = -2.0, -6.0, 2.0
"""Where log σ² starts, and between which values it stays, as published."""

WARM_UP = 0.1
"""Share of the steps in which the weight of the divergence rises to its full size."""


@register
@dataclass(frozen=True)
class Variational(AbsTopK):
    """AbsTopK on noisy pre-activations: μ = E x + b_e, log σ² = E_σ x + b_σ, z = μ + σ ξ.

    The loss is ‖x − x̂‖² + kl · ½ Σ (μ² + σ² − 1 − log σ²) + aux · AuxK. σ and the prior are in
    units of 1/√k, about the size of an active latent, since the published weight is for data of
    another scale. The divergence counts all latents and pulls them to the prior, against sparsity.
    The finished dictionary is AbsTopK on μ.

    Expect less than of AbsTopK: the paper itself reports worse reconstruction than TopK's and many
    dead latents. It is here so that the comparison can be repeated.

    Attributes:
        k: active latents of a row.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
        kl: weight of the divergence from the prior.
        noise: multiplies σ where z is drawn; with 0 and kl = 0 it is AbsTopK.
    """

    name: ClassVar[str] = "variational"
    summary: ClassVar[str] = (
        "noisy AbsTopK with a Gaussian prior; a negative result, for comparison"
    )
    source: ClassVar[str] = (
        "vSAE 2025, variational sparse autoencoders (reported as inferior to TopK)"
    )
    kl: float = 1e-3
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        super().__post_init__()
        at_least(0, kl=self.kl, noise=self.noise)

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors, and E_σ = 0 and b_σ = −2.

        Raises:
            InputError: if there are fewer than k latents.
        """
        spread = torch.full((start.n_latents,), LOG_VARIANCE)
        return {
            **super().prepare(start),
            "spread_weight": torch.zeros_like(start.atoms).requires_grad_(),
            "spread_bias": spread.requires_grad_(),
        }

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the loss of a draw; every process draws its rows of the whole batch's noise."""
        t, dead = apart(t, step.dead, self.aux, step.random)
        # Dense products: noise can lift any latent among the k, and the divergence has a gradient
        # at each.
        mean = functional.linear(step.x, t["encoder_weight"], t["encoder_bias"])
        log_variance = functional.linear(step.x, t["spread_weight"], t["spread_bias"])
        log_variance = log_variance.clamp(LOWEST, HIGHEST)
        drawn = mean + self.noise / math.sqrt(self.k) * (log_variance / 2).exp() * _noise(step, t)
        # The choice has no gradient; what is chosen has, through the gathering below.
        support = self.select(drawn.detach(), t, step)
        code = Code(support.gather(drawn), support)
        loss, error = self.misfit(t, step.x, code)
        warm = min(1.0, step.progress / WARM_UP)
        loss = loss + self.kl * warm * divergence(mean * math.sqrt(self.k), log_variance)
        if dead is not None:
            loss = loss + self.aux * dead_loss(dead, step, error, self.k_aux, signed=True)
        return Outcome(loss, code.counts())


def divergence(
    mean: Float[Tensor, "rows latents"], log_variance: Float[Tensor, "rows latents"]
) -> Float[Tensor, ""]:
    """Return the mean over rows of KL(N(μ, σ²) ‖ N(0, 1)), summed over latents.

    >>> float(divergence(torch.tensor([[3.0]]), torch.tensor([[0.0]])))
    4.5
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()


def _noise(step: Step, t: Tensors) -> Float[Tensor, "rows latents"]:
    shape = (len(step.x) * step.team.size, len(t["atoms"]))
    drawn = torch.randn(shape, generator=step.random, dtype=step.x.dtype)
    return step.team.share(drawn).to(step.x.device)
