"""JumpReLU: a threshold for each latent, trained by how the loss changes when codes cross it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.kernels.encoder import encode_above, pre_activations
from salve_plugin.discover.kernels.squared_error import misfit
from salve_plugin.discover.learners.auxiliary import apart, dead_loss
from salve_plugin.discover.learners.base import Architecture, Learner, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import above, at_least, at_least_one
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.relu_l1 import SPARSITY_WARM_UP

PACE = 6.0
"""What is trained is log θ divided by this, so that thresholds move at a multiple of the rate at
which others do: thresholds that lag behind the penalty let L0 control overshoot."""


@register
@dataclass(frozen=True)
class JumpReLU(Learner):
    """z = h · 1[h > θ] with h = E x + b_e; loss ‖x − x̂‖² + l0 · (number of active latents).

    A threshold θ has no gradient of its own: it changes which latents are active, in jumps. Its
    gradient is estimated from the pre-activations that lie within half a bandwidth of it, on
    either side, as if the jump were a steep line (rectangle kernel): an unbiased estimate of how
    the expected loss changes, up to the bandwidth. Without noise, a latent is worth its place
    where h² exceeds `l0`, so that thresholds settle near √l0.

    Attributes:
        l0: weight of the number of active latents of a row.
        aim: if given, the penalty is l0 · (L0 / aim − 1)² instead, of the mean L0 of the batch: it
            pulls towards that L0 from both sides.
        bandwidth: width of the kernel. Rows of mean squared norm 1 have codes of about 1 / √L0,
            and thresholds came to rest at a little less than half of that, 0.1 to 0.25 for L0 of 16
            to 3. The bandwidth is a part of these; a smaller one has less bias and sees fewer
            pre-activations.
        initial_l0: active latents of a row at the start, on average, at most a quarter of all; it
            decides where thresholds start, because an optimizer moves log θ by no more than a few
            times its rate in each step.
        aux: weight of the loss by which dead latents learn to predict the error (AuxK): a latent
            that started anew would stay below its threshold.
    """

    name: ClassVar[str] = "jumprelu"
    summary: ClassVar[str] = "a trained threshold for each latent; penalizes the number of active"
    source: ClassVar[str] = "Rajamanoharan et al. 2024, Jumping ahead: JumpReLU sparse autoencoders"
    saelens: ClassVar[Architecture | None] = "jumprelu"
    extra: ClassVar[Mapping[str, int]] = {"threshold": 1}
    l0_control: ClassVar[Literal["k", "weight"] | None] = "weight"
    l0: float = 0.01
    aim: float | None = None
    bandwidth: float = 0.03
    initial_l0: int = 32
    aux: float = 1 / 32

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        at_least(0, l0=self.l0, aux=self.aux)
        above(0, aim=1 if self.aim is None else self.aim)
        above(0, bandwidth=self.bandwidth)
        at_least_one(initial_l0=self.initial_l0)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Keep what exceeds the latent's threshold."""
        return pre * (pre > thresholds(t))

    def initial_code(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """Keep what exceeds the threshold that leaves `initial_l0` latents of a row active."""
        return pre * (pre > self._initial_threshold(pre))

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors and log θ / PACE (latents,); all are trained."""
        pre = start.gain * start.sample @ start.atoms.T
        logarithm = self._initial_threshold(pre).log().repeat(start.n_latents) / PACE
        return {**start.tensors(), "log_threshold": logarithm.requires_grad_()}

    def _initial_threshold(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, ""]:
        """Return the threshold that leaves `initial_l0` latents of a row active, if positive."""
        active = len(pre) * min(self.initial_l0, max(1, pre.shape[1] // 4))
        # Positive, because training moves its logarithm.
        return pre.flatten().topk(active).values[-1].clamp(min=1e-3)

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² plus the penalty, which warms up."""
        t, dead = apart(t, step.dead, self.aux, step.random)
        theta = thresholds(t)
        # Within half a bandwidth below the threshold the code is zero, but the threshold learns.
        near = theta.detach() - self.bandwidth / 2
        weight, bias = t["encoder_weight"], t["encoder_bias"]
        pre = pre_activations(step.x, weight, bias, step.scratch)
        chosen = encode_above(step.x, weight, bias, pre, near, step.scratch)
        # Expanded, because the functions below return a gradient of the values' shape: autograd
        # sums it up for each latent on its way through this.
        theta = chosen.at(theta).expand_as(chosen.values)
        code = chosen.replaced(jump(chosen.values, theta, self.bandwidth))
        loss, error = misfit(step.x, code, t["atoms"], t["decoder_bias"])
        l0 = above_threshold(chosen.values.detach(), theta, self.bandwidth).sum() / len(step.x)
        strength = self.l0 * step.weight * min(1.0, step.progress / SPARSITY_WARM_UP)
        loss = loss + strength * self._penalty(l0, step)
        if dead is not None:
            loss = loss + self.aux * dead_loss(dead, step, error)
        return Outcome(loss, code.counts())

    def _penalty(self, l0: Tensor, step: Step) -> Tensor:
        """Return L0, or (L0 / aim − 1)² of all processes, with the gradient of this one's share."""
        if self.aim is None:
            return l0
        # Gradients are averaged over processes: the factor is that of all rows, and what has a
        # gradient the rows of this process, so that their mean is the gradient of the whole.
        off = step.team.mean(l0) / self.aim - 1
        return off.square() + 2 * off / self.aim * (l0 - l0.detach())

    def finished(self, t: Tensors) -> Tensors:
        """Return the four tensors and θ (latents,)."""
        return super().finished({**t, "threshold": thresholds(t)})


def thresholds(t: Tensors) -> Float[Tensor, " latents"]:
    """Return θ > 0: in training the exponential of what is trained."""
    return t["threshold"] if "threshold" in t else (PACE * t["log_threshold"]).exp()


def jump(
    pre: Float[Tensor, "*shape"], theta: Float[Tensor, "*shape"], bandwidth: float
) -> Float[Tensor, "*shape"]:
    """Return h · 1[h > θ], with −(θ / w) · 1[|h − θ| < w / 2] as derivative in θ.

    The derivative in h is 1[h > θ] (Rajamanoharan et al. 2024).
    """
    code: Tensor = _Jump.apply(pre, theta, bandwidth)
    return code


def above_threshold(
    pre: Float[Tensor, "*shape"], theta: Float[Tensor, "*shape"], bandwidth: float
) -> Float[Tensor, "*shape"]:
    """Return 1[h > θ], with −(1 / w) · 1[|h − θ| < w / 2] as derivative in θ and none in h.

    It takes h, not the code (Rajamanoharan et al. 2024): codes just below the threshold are zero,
    and the lower half of the kernel would see none of them.
    """
    on: Tensor = _Above.apply(pre, theta, bandwidth)
    return on


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta = ctx.saved_tensors
        near = (pre - theta).abs() < ctx.bandwidth / 2
        # At θ the code jumps by θ, and the kernel spreads the jump over the bandwidth w: a slope of
        # −θ / w.
        return gradient * (pre > theta), -gradient * theta * near / ctx.bandwidth, None


class _Above(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta = ctx.saved_tensors
        near = (pre - theta).abs() < ctx.bandwidth / 2
        return None, -gradient * near / ctx.bandwidth, None
