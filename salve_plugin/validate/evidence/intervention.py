"""What a latent's contribution does to class probabilities, against other atoms at equal KL."""

from collections.abc import Callable
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

Moved = Callable[[Float64[Tensor, " some"]], Float64[Tensor, "some images classes"]]
"""From how much is taken away to the logits that are left."""


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

    With u = W a, the logits are those of the image plus (scale - 1) z u.

    Args:
        logits: of the model as it is; a single one counts as two classes.
        codes: z of each image.
        pull: u, what one unit of the latent adds to the logits.
        controls: the same of other latents.
        label: of the class.
    """

    def without(pulls: Float64[Tensor, "some classes"]) -> Moved:
        steps = codes[:, None] * pulls[:, None, :]
        return lambda amounts: logits - amounts[:, None, None] * steps

    return intervened(logits, without(pull[None]), without(controls), len(controls), label)


def intervened(
    logits: Float64[Tensor, "images classes"],
    own: Moved,
    controls: Moved,
    n_controls: int,
    label: int,
    *,
    close: float = _CLOSE,
    least: float = 0.0,
) -> Intervention:
    """Take a latent's contribution away by parts, and others' in its place.

    A control takes another latent's atom in its place, as strong in each image as this one is,
    times one factor that brings it to the same mean KL: how far the predictions move is equal,
    where to differs.

    Args:
        logits: of the model as it is.
        own: of the latent, for any number of amounts.
        controls: of the other latents, an amount for each.
        n_controls: how many they are.
        label: of the class.
        close: how near, relatively, a control's divergence is to be to the latent's.
        least: KL that rounding may leave of no effect.
    """
    log_p = two_sided(logits).log_softmax(1)
    amounts = 1 - torch.tensor(SCALES, dtype=torch.float64)
    scaled = two_sided(own(amounts))
    curve = scaled.softmax(-1)[..., label].mean(1)
    base = SCALES.index(1.0)
    kl = float(_divergence(log_p, scaled)[SCALES.index(0.0)])
    effect = float(curve[SCALES.index(0.0)] - curve[base])
    if not kl > least:  # it is off in all these images, or the classifier does not see it
        return Intervention(tuple(curve.tolist()), max(0.0, kl), effect, 1.0)
    # At equal strength a latent of large codes would stand out by them alone: at equal KL only the
    # direction counts.
    factor = at_divergence(logits, controls, n_controls, kl, close)
    moved = two_sided(controls(factor)).softmax(-1)[..., label].mean(1)
    as_much = int((moved - curve[base] <= effect).sum())
    return Intervention(tuple(curve.tolist()), kl, effect, (1 + as_much) / (1 + n_controls))


def at_divergence(
    logits: Float64[Tensor, "images classes"],
    moved: Moved,
    count: int,
    kl: float,
    close: float = _CLOSE,
) -> Float64[Tensor, " controls"]:
    """Return the amount t >= 0 at which each control has a given mean KL from the logits.

    At the classifier the KL is convex in t and 0 at t = 0, so there is one such t, unless a step
    adds the same to all classes: then the largest amount that is tried is returned, and it does
    next to nothing. Where a network lies between, it may jump over the KL: then t is beyond it.
    """
    log_p = two_sided(logits).log_softmax(1)
    low = torch.zeros(count, dtype=torch.float64)
    high = torch.full_like(low, torch.inf)
    t = torch.ones_like(low)
    near = torch.zeros(count, dtype=torch.bool)
    for turn in range(_ROUNDS):
        reached = _divergence(log_p, two_sided(moved(t)))
        near = (reached - kl).abs() <= close * kl
        if bool(near.all()):
            return t
        low, high = torch.where(reached < kl, t, low), torch.where(reached < kl, high, t)
        # Near 0 the divergence is a multiple of t squared, for which this step is exact.
        guess = t * (kl / reached.clamp(min=1e-300)).sqrt().clamp(1e-3, 1e3)
        middle = torch.where(high.isinf(), 2 * low, (low + high) / 2)
        inside = (guess > low) & (guess < high)
        # Every third step halves the bracket: far from 0 the other may crawl, or jump to and fro.
        halve = (turn % 3 == 2) & high.isfinite()
        step = torch.where(inside & ~halve, guess, middle)
        t = torch.where(near, t, step).clamp(max=_MOST)
    return torch.where(near | high.isinf(), t, high)


def _divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over images of KL(p || softmax(logits))."""
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1).mean(-1)
