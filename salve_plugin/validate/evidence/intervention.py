"""What a latent's contribution does to class probabilities, against other atoms at equal KL."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.solving import two_sided

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Factors of the latent's contribution; 1 leaves it as it is."""
_ROUNDS = 24
_CLOSE = 1e-3
"""How near, relatively, a control's divergence is to the latent's."""
_MOST = 1e6
"""Largest factor of a control: beyond it, what rounding leaves of no effect would look like one."""


@dataclass(frozen=True)
class Intervention:
    """One latent, on images of the class that it tells.

    Attributes:
        curve: mean probability of the class at each of `SCALES`.
        kl: mean KL(base || ablated) over these images, in nats.
        effect: change of the mean probability when the latent is ablated; negative where the
            class needs it.
        effect_p: share of the controls, the latent counted, that lower it as much at the same KL.
    """

    curve: tuple[float, ...]
    kl: float
    effect: float
    effect_p: float


def intervention(
    logits: Float64[Tensor, "images classes"],
    codes: Float64[Tensor, " images"],
    pull: Float64[Tensor, " classes"],
    controls: Float64[Tensor, "controls classes"],
    label: int,
) -> Intervention:
    """Scale a latent's contribution z a at the classifier's input, in closed form.

    With u = W a, the logits are those of the image plus (scale - 1) z u. A control takes another
    latent's atom in its place, as strong in each image as this one is, times one factor that
    brings it to the same mean KL: how far the predictions move is equal, where to differs.

    Args:
        logits: of the model as it is; a single one counts as two classes.
        codes: z of each image.
        pull: u, what one unit of the latent adds to the logits.
        controls: the same of other latents.
        label: of the class.
    """
    log_p = two_sided(logits).log_softmax(1)
    curve = []
    for scale in SCALES:
        moved = two_sided(logits + (scale - 1) * codes[:, None] * pull)
        curve.append(float(moved.softmax(1)[:, label].mean()))
    kl = float(_divergence(log_p, two_sided(logits - codes[:, None] * pull)))
    effect = curve[0] - curve[SCALES.index(1.0)]
    if not kl > 0:  # it is off in all these images, or the classifier does not see it
        return Intervention(tuple(curve), max(0.0, kl), effect, 1.0)
    steps = codes[:, None] * controls[:, None, :]
    factor = at_divergence(logits, steps, kl)
    moved = two_sided(logits - factor[:, None, None] * steps).softmax(-1)[..., label].mean(1)
    as_much = int((moved - curve[SCALES.index(1.0)] <= effect).sum())
    return Intervention(tuple(curve), kl, effect, (1 + as_much) / (1 + len(controls)))


def at_divergence(
    logits: Float64[Tensor, "images classes"],
    steps: Float64[Tensor, "controls images classes"],
    kl: float,
) -> Float64[Tensor, " controls"]:
    """Return the factor t >= 0 at which logits - t step has a given mean KL from the logits.

    The KL is convex in t and 0 at t = 0, so there is one such t, unless a step adds the same to
    all classes: then the largest factor that is tried is returned, and it does next to nothing.
    """
    log_p = two_sided(logits).log_softmax(1)

    def divergence(t: Tensor) -> Tensor:
        moved = logits - t[:, None, None] * steps
        return _divergence(log_p, two_sided(moved))

    low = torch.zeros(len(steps), dtype=torch.float64)
    high = torch.full_like(low, torch.inf)
    t = torch.ones_like(low)
    for turn in range(_ROUNDS):
        reached = divergence(t)
        if bool(((reached - kl).abs() <= _CLOSE * kl).all()):
            break
        low, high = torch.where(reached < kl, t, low), torch.where(reached < kl, high, t)
        # Near 0 the divergence is a multiple of t squared, for which this step is exact.
        guess = t * (kl / reached.clamp(min=1e-300)).sqrt().clamp(1e-3, 1e3)
        middle = torch.where(high.isinf(), 2 * low, (low + high) / 2)
        inside = (guess > low) & (guess < high)
        # Every third step halves the bracket: far from 0 the other may crawl, or jump to and fro.
        halve = (turn % 3 == 2) & high.isfinite()
        moved = torch.where(inside & ~halve, guess, middle)
        t = torch.where((reached - kl).abs() <= _CLOSE * kl, t, moved).clamp(max=_MOST)
    return t


def _divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over images of KL(p || softmax(logits))."""
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1).mean(-1)
