"""The plain sparse autoencoder: ReLU and an l1 penalty, which may anneal towards counting."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_above, pre_activations
from salve_plugin.discover.kernels.sparse import Code
from salve_plugin.discover.kernels.squared_error import misfit
from salve_plugin.discover.learners.base import (
    L0_TOLERANCE,
    Architecture,
    Learner,
    Outcome,
    Start,
    Step,
    Tensors,
)
from salve_plugin.discover.learners.checks import at_least, between
from salve_plugin.discover.learners.registry import register

SPARSITY_WARM_UP = 0.1
"""Share of the steps in which the penalty rises: at full weight from the first step it would
silence latents before their atoms have found a direction."""

FIRST_DENSITY = 0.03
"""Share of the rows in which each latent is active at first. Without a bias it would be half of
them: a code so dense says little about which latent a row needs, the penalty must first thin it
out, and until then products are dense. With less than this, L0 control starts too far below its
target and ends beside it."""

ANNEAL_FROM, UPDATES = 0.4, 10
"""After which share of the steps the exponent p starts to fall, and in how many updates."""


@register
@dataclass(frozen=True)
class ReluL1(Learner):
    """z = relu(E x + b_e); loss ‖x − x̂‖² + l1 · ‖z‖ₚᵖ, per row, with p = 1 by default.

    With `final_p` below 1 the exponent falls from 1 in ten equal updates between 40 % of the steps
    and the end, as in p-annealing (Karvonen et al. 2024). At each update the penalty is divided by
    its ratio to the l1 norm of the same codes, so that its size stays continuous while its shape
    comes closer to counting active latents.

    Attributes:
        l1: weight of the penalty.
        final_p: exponent at the end, above 0; 1 leaves it alone.
    """

    name: ClassVar[str] = "relu_l1"
    summary: ClassVar[str] = "ReLU code with an l1 penalty (optionally p-annealed)"
    source: ClassVar[str] = "Bricken et al. 2023; p-annealing: Karvonen et al. 2024, NeurIPS"
    saelens: ClassVar[Architecture | None] = "standard"
    l0_control: ClassVar[Literal["k", "weight"] | None] = "weight"
    revived: ClassVar[bool] = True
    l1: float = 0.1
    final_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if the weight is negative or not finite, or `final_p` not in (0, 1].
        """
        at_least(0, l1=self.l1)
        between(0.01, 1, final_p=self.final_p)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the positive part."""
        return functional.relu(pre)

    def initial_code(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """Return what exceeds each latent's first threshold."""
        return functional.relu(pre - _thresholds(pre))

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors, with a bias that keeps each latent to few rows at first."""
        t = start.tensors()
        thresholds = _thresholds(start.sample @ start.atoms.T)
        with torch.no_grad():
            t["encoder_bias"] -= start.gain * thresholds
        return t

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² + l1 · ‖z‖ₚᵖ, the penalty warming up."""
        weight, bias = t["encoder_weight"], t["encoder_bias"]
        pre = pre_activations(step.x, weight, bias, step.scratch)
        chosen = encode_above(step.x, weight, bias, pre, 0.0, step.scratch)
        code = chosen.replaced(functional.relu(chosen.values))
        error, _ = misfit(step.x, code, t["atoms"], t["decoder_bias"])
        strength = self.l1 * step.weight * min(1.0, step.progress / SPARSITY_WARM_UP)
        penalty = self._norm(code, step) / len(step.x)
        return Outcome(error + strength * penalty, code.counts(above=L0_TOLERANCE))

    def _norm(self, code: Code, step: Step) -> Tensor:
        """Return Σ|z|ᵖ over the batch, rescaled to the size of Σ|z|."""
        size = code.values.sum()
        done = (step.progress - ANNEAL_FROM) / (1 - ANNEAL_FROM)
        updates = min(UPDATES, int(max(0.0, done) * UPDATES) + 1) if done > 0 else 0
        p = 1 - (1 - self.final_p) * updates / UPDATES
        if p == 1.0:
            return size
        on = code.values[code.values > 0]
        # The slope of zᵖ has no bound at 0. Codes below 1e-3, a tenth of what counts as active, are
        # clamped and feel none.
        powers = on.clamp(min=1e-3).pow(p).sum()
        # Without gradient, and of all processes: it keeps the size of the penalty and leaves the
        # direction of the gradient to the new shape.
        ratio = step.team.sum(size) / step.team.sum(powers).clamp(min=1e-12)
        return ratio * powers


def _thresholds(pre: Float[Tensor, "rows latents"]) -> Float[Tensor, " latents"]:
    """Return for each latent the value that it exceeds in a share FIRST_DENSITY of the rows."""
    most = max(1, round((1 - FIRST_DENSITY) * len(pre)))
    level = pre.kthvalue(most, dim=0).values
    # Of a few different rows, more than that share may have the largest value, which none exceeds.
    return torch.minimum(level, torch.lerp(pre.mean(0), pre.amax(0), 0.9))
