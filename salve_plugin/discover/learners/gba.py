"""GBA: gradients learn the atoms, a control rule sets the biases by how active latents are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_above, pre_activations
from salve_plugin.discover.kernels.sparse import Code
from salve_plugin.discover.kernels.squared_error import misfit
from salve_plugin.discover.learners.base import Architecture, Learner, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import above, at_least_one, between
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.recording.team import Team
from salve_plugin.errors import InputError

SILENT = 1e-6
"""Activity below which a latent's bias rises."""

LEAST_SCALE = 1e-3
"""Smallest factor between a latent's projection and its code: a negative one would turn its gate
around."""


@register
@dataclass(frozen=True)
class GBA(Learner):
    """z = 1[⟨v, x − b_d⟩ + b > 0] · a ⟨v, x − b_d⟩: a threshold −b opens the gate, nothing shrinks.

    Atoms v, their scales a and b_d follow the gradient of ‖x − x̂‖² alone; encoder and atoms are
    tied. The biases b ≤ 0 have no gradient. Latents are split into groups with target activities,
    geometrically from `highest` to `lowest`. After each `window` rows, the bias of a latent that
    was active more often than its target falls by `rate` times its largest gate value; that of a
    silent one rises by `rate` times the mean of those in its group, to at most 0.

    Unlike in the paper, a bias may fall below −1: there, rows have unit norm.

    As dictionary: pre = a ⟨v, x − b_d⟩ + a b, and z = 1[pre > 0] · relu(pre + offset), with
    offset = −a b.

    Attributes:
        highest: share of the rows in which latents of the first group may be active.
        lowest: the same of the last group.
        groups: number of groups.
        rate: how far a bias moves at once.
        window: rows over which activity is measured.
    """

    name: ClassVar[str] = "gba"
    summary: ClassVar[str] = "biases set by rule so that groups of latents reach set activities"
    source: ClassVar[str] = "after Chen et al. 2025, group bias adaptation"
    saelens: ClassVar[Architecture | None] = "gated"
    extra: ClassVar[Mapping[str, int]] = {"offset": 1}
    highest: float = 0.1
    lowest: float = 0.01
    groups: int = 4
    rate: float = 0.02
    window: int = 2048

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        between(1e-5, 1, highest=self.highest, lowest=self.lowest)
        at_least_one(groups=self.groups, window=self.window)
        above(0, rate=self.rate)
        if self.lowest > self.highest:
            raise InputError(f"lowest = {self.lowest:g} must not exceed highest = {self.highest:g}")

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the projection, bias taken back, of the latents whose gate is open."""
        return (pre > 0) * functional.relu(pre + t["offset"])

    def prepare(self, start: Start) -> Tensors:
        """Return atoms, b_d and the scale, which are trained, and what follows from them.

        `bias`, `peak` (largest gate value), `fired` (rows in which active) are (latents,), `seen`
        (rows since the last rule) is a scalar.
        """
        tensors = start.tensors()
        for name in ("encoder_weight", "encoder_bias"):
            tensors[name].requires_grad_(False)
        zero = {name: torch.zeros(start.n_latents) for name in ("bias", "offset", "peak", "fired")}
        scale = torch.full((start.n_latents,), start.gain).requires_grad_()
        return {**tensors, **zero, "seen": torch.zeros(()), "scale": scale}

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖²; before that, move the biases if it is time."""
        if bool(t["seen"] >= self.window):
            self._move_biases(t)
        # The rule moves biases in place, and this step's graph must keep what it was computed with.
        atoms, bias = t["atoms"], t["bias"].clone()
        # ⟨v, x − b_d⟩ + b = ⟨v, x⟩ + (b − ⟨v, b_d⟩): no centred copy of the rows is needed, and b_d
        # gets its gradient through the offset.
        offset = bias - atoms @ t["decoder_bias"]
        pre = pre_activations(step.x, atoms, offset, step.scratch)
        _observe(t, pre, step.team)
        projected = encode_above(step.x, atoms, offset, pre, 0.0, step.scratch)
        sizes = projected.at(t["scale"]) * (projected.values - projected.at(bias))
        # The mask is for the case that so many gates are open that all latents come back.
        code = Code((projected.values > 0) * sizes, projected.support)
        loss, _ = misfit(step.x, code, atoms, t["decoder_bias"])
        return Outcome(loss, code.counts())

    @torch.no_grad()
    def _move_biases(self, t: Tensors) -> None:
        """Apply the control rule and begin a new window."""
        targets, group = self.targets(len(t["bias"])), self.group(len(t["bias"]))
        t["bias"].copy_(
            moved(t["bias"], t["fired"] / t["seen"], t["peak"], targets, group, self.rate)
        )
        for name in ("fired", "peak", "seen"):
            t[name].zero_()

    def group(self, n_latents: int) -> Int[Tensor, " latents"]:
        """Return the group of each latent: runs of about the same length."""
        return torch.arange(n_latents) * self.groups // n_latents

    def targets(self, n_latents: int) -> Float[Tensor, " latents"]:
        """Return the share of the rows in which each latent may be active."""
        fall = (self.lowest / self.highest) ** (1 / max(1, self.groups - 1))
        return self.highest * torch.tensor(fall).pow(self.group(n_latents))

    def constrain(self, t: Tensors) -> None:
        """Bring atoms to unit norm, scales above zero, and what follows from them up to date."""
        super().constrain(t)
        scale, bias = t["scale"].clamp_(min=LEAST_SCALE), t["bias"]
        t["encoder_weight"].copy_(scale[:, None] * t["atoms"])
        t["encoder_bias"].copy_(scale * (bias - t["atoms"] @ t["decoder_bias"]))
        t["offset"].copy_(-scale * bias)


def moved(
    bias: Float[Tensor, " latents"],
    activity: Float[Tensor, " latents"],
    peak: Float[Tensor, " latents"],
    targets: Float[Tensor, " latents"],
    group: Int[Tensor, " latents"],
    rate: float,
) -> Float[Tensor, " latents"]:
    """Return the biases after one application of the control rule.

    Latents above their target fall by rate · peak; silent ones rise by rate · (mean positive peak
    of their group), to at most 0; the others stay.

    Args:
        bias: before.
        activity: share of the window's rows in which each latent was active.
        peak: largest gate value in the window, at least 0.
        targets: highest activity allowed.
        group: of each latent.
        rate: how far a bias moves at once.
    """
    # A silent latent has no gate value of its own to go by, so it is lifted by what is usual among
    # those of its group that do fire.
    positive = (peak > 0).to(peak)
    sums = torch.zeros_like(peak).index_add(0, group, peak)
    counts = torch.zeros_like(peak).index_add(0, group, positive)
    mean = (sums / counts.clamp(min=1))[group]
    fallen = torch.where(activity > targets, bias - rate * peak, bias)
    return torch.where(activity < SILENT, fallen + rate * mean, fallen).clamp(max=0)


def _observe(t: Tensors, pre: Tensor, team: Team) -> None:
    """Count in how many rows latents are active, and note their largest gate value."""
    # The largest over all processes, not this one's: the rule must move every copy alike.
    peaks = team.gather(pre.amax(0)).view(team.size, -1).amax(0)
    t["peak"].copy_(torch.maximum(t["peak"], peaks.to(t["peak"])))
    t["fired"] += team.sum((pre > 0).sum(0))
    t["seen"] += len(pre) * team.size
