"""Gated: one path decides whether a latent is active, another how strongly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_above, pre_activations
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
from salve_plugin.discover.learners.checks import at_least
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.relu_l1 import SPARSITY_WARM_UP


@register
@dataclass(frozen=True)
class Gated(Learner):
    """z = 1[π > 0] · relu(g π + b_m) with the gate π = E x + b_e.

    The loss of a row is ‖x − x̂‖² + l1 · ‖relu(π)‖₁ + ‖x − relu(π) sg(V) − sg(b_d)‖², where sg
    holds the decoder fixed. The penalty shrinks the gate, not the code: the second path, a gain and
    a bias for each latent, undoes the shrinkage; the third term teaches the gate, whose jump has no
    gradient, what would reconstruct. The paper writes the second path as relu(eʳ E x + b'): the
    same with g = eʳ and b_m = b' − eʳ b_e.

    Attributes:
        l1: weight of the penalty. Both paths pull the gate towards what reconstructs, so that it
            takes more than a `relu_l1` does: of 0.1 to 0.8, 0.4 found most of three planted
            dictionaries (98 % of the atoms; 0.1 found 2 % of one of them, with codes six times too
            dense). On late-layer features it is sparse: `target_l0` asks for more.
    """

    name: ClassVar[str] = "gated"
    summary: ClassVar[str] = "a gate under an l1 penalty chooses latents, a second path sizes them"
    source: ClassVar[str] = (
        "Rajamanoharan et al. 2024, Improving dictionary learning with Gated SAEs"
    )
    saelens: ClassVar[Architecture | None] = "gated"
    extra: ClassVar[Mapping[str, int]] = {"gain": 0, "magnitude_bias": 1}
    l0_control: ClassVar[Literal["k", "weight"] | None] = "weight"
    revived: ClassVar[bool] = True
    l1: float = 0.4

    def __post_init__(self) -> None:
        """Check the weight.

        Raises:
            InputError: if it is negative or not finite.
        """
        at_least(0, l1=self.l1)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the size of the latents whose gate is open."""
        return (pre > 0) * functional.relu(gains(t) * pre + t["magnitude_bias"])

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors, log g and b_m (latents,), both zero; all are trained."""
        own = {name: torch.zeros(start.n_latents) for name in ("log_gain", "magnitude_bias")}
        return {**start.tensors(), **{name: new.requires_grad_() for name, new in own.items()}}

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of the three terms, the penalty warming up."""
        weight, bias = t["encoder_weight"], t["encoder_bias"]
        pre = pre_activations(step.x, weight, bias, step.scratch)
        # A latent whose gate is shut adds nothing to any term or gradient. If so many are open that
        # all come back, relu and the mask below make the others zero.
        chosen = encode_above(step.x, weight, bias, pre, 0.0, step.scratch)
        gate = chosen.replaced(functional.relu(chosen.values))
        sizes = chosen.at(gains(t)) * chosen.values + chosen.at(t["magnitude_bias"])
        code = chosen.replaced((chosen.values > 0) * functional.relu(sizes))
        error, _ = misfit(step.x, code, t["atoms"], t["decoder_bias"])
        fixed = t["atoms"].detach(), t["decoder_bias"].detach()
        by_gate, _ = misfit(step.x, gate, fixed[0], fixed[1])
        strength = self.l1 * step.weight * min(1.0, step.progress / SPARSITY_WARM_UP)
        penalty = strength * gate.values.sum() / len(step.x)
        return Outcome(error + by_gate + penalty, code.counts(above=L0_TOLERANCE))

    def finished(self, t: Tensors) -> Tensors:
        """Return the four tensors, g and b_m (latents,)."""
        return super().finished({**t, "gain": gains(t)})


def gains(t: Tensors) -> Float[Tensor, " latents"]:
    """Return g > 0: in training the exponential of what is trained."""
    return t["gain"] if "gain" in t else t["log_gain"].exp()
