"""VL-SAE's encoder: latents are active by how near a row's direction is to theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_at, pre_activations
from salve_plugin.discover.kernels.precision import largest
from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.learners.base import Learner, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import at_least_one, fits
from salve_plugin.discover.learners.registry import register

SMALLEST = 1e-8
"""Squared distance below which it counts as constant: at 0 its root has no derivative."""


@register
@dataclass(frozen=True)
class VL(Learner):
    """h = 2 − ‖x̂ − ê‖ for directions x̂ of x − c and ê of the encoder's rows; z keeps gain · h.

    The k nearest latents of each row are active, h between 0 (opposite) and 2 (equal). As
    ‖x̂ − ê‖² = 2 − 2 cos, this is TopK on cosines with another value. The length of x − c plays no
    part, so that it suits sites whose rows matter by direction, as CLIP's; the error of rows that
    differ in length is not explained. The published decoder has atoms of any norm; here that norm
    is the latent's gain. Only the encoder for one kind of activations is meant, not the pair for
    images and texts. The loss is ‖x − x̂‖² alone.

    The centre c is the mean of the training rows. A finished dictionary knows it as decoder bias
    minus the extra tensor `offset`.

    Attributes:
        k: active latents of a row.
    """

    name: ClassVar[str] = "vl"
    summary: ClassVar[str] = "the k nearest latents by distance of directions, whatever the length"
    source: ClassVar[str] = "Shen et al. 2025, VL-SAE, its distance-based encoder"
    extra: ClassVar[Mapping[str, int]] = {"gain": 1, "offset": 1}
    l0_control: ClassVar[Literal["k", "weight"] | None] = "k"
    k: int = 32

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if k is not a whole number of at least 1.
        """
        at_least_one(k=self.k)

    def pre_activation(
        self, t: Tensors, x: Float[Tensor, "*rows width"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return h, between 0 and 2."""
        centre = t["decoder_bias"] - t["offset"]
        return nearness(x - centre, t["encoder_weight"])

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Keep gain · h of the k latents of largest h in each row."""
        values, latents = pre.topk(min(self.k, pre.shape[-1]), dim=-1)
        return torch.zeros_like(pre).scatter(-1, latents, values) * t["gain"]

    def prepare(self, start: Start) -> Tensors:
        """Return the common tensors, and gain (latents,) and bias that reconstruct the sample best.

        Raises:
            InputError: if there are fewer than k latents.
        """
        fits(self.k, start.n_latents)
        t = start.tensors()
        ones = {"gain": torch.ones(start.n_latents), "offset": t["decoder_bias"].detach()}
        with torch.no_grad():
            part = self.encode({**t, **ones}, start.rows) @ t["atoms"]
            middle = part.mean(0)
            spread = (part - middle).square().sum()
            # A regression with an intercept, since h of an orthogonal direction is 2 − √2, not 0:
            # the code has a large mean, which the decoder's bias takes back below.
            gain = ((part - middle) * start.rows).sum() / spread.clamp(min=SMALLEST)
            gain = gain.clamp(min=1e-3)
        t["encoder_weight"] = start.atoms.clone().requires_grad_()
        t["encoder_bias"] = torch.zeros(start.n_latents)
        t["decoder_bias"] = (start.rows.mean(0) - gain * middle).requires_grad_()
        t["gain"] = torch.full((start.n_latents,), float(gain)).requires_grad_()
        t["offset"] = t["decoder_bias"].detach().clone()
        return t

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖²."""
        x = functional.normalize(step.x, dim=1)  # the centre is 0 in training
        # Normalized here, too: gradients then have no part along the direction itself, which
        # `constrain` would take back.
        weight, bias = functional.normalize(t["encoder_weight"], dim=1), t["encoder_bias"]
        with torch.no_grad():
            cosines = pre_activations(x, weight, torch.zeros_like(bias), step.scratch)
            support = Support.of_indices(cosines.topk(self.k, sorted=False).indices, len(weight))
        cosine = Code(encode_at(x, weight, bias, support, cosines), support)
        code = cosine.replaced(_near(cosine.values) * cosine.at(t["gain"]))
        error = step.x - code.decode(t["atoms"]) - t["decoder_bias"]
        return Outcome(error.square().sum(-1).mean(), code.counts())

    def constrain(self, t: Tensors) -> None:
        """Bring atoms and encoder to unit norm, and the offset to the decoder's bias."""
        super().constrain(t)
        t["encoder_weight"] /= torch.linalg.vector_norm(t["encoder_weight"], dim=1, keepdim=True)
        t["gain"].clamp_(min=0)
        # Their difference, the centre, is 0 in training. Folding multiplies both by the scale and
        # adds the mean to the bias alone, so that the centre becomes the mean.
        t["offset"].copy_(t["decoder_bias"])


def nearness(
    x: Float[Tensor, "*rows width"], weight: Float[Tensor, "latents width"]
) -> Float[Tensor, "*rows latents"]:
    """Return 2 minus the distance of the directions: 2 if equal, 0 if opposite.

    >>> nearness(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [-5.0, 0.0]])).round()
    tensor([[2., 0.]])
    """
    # Else rows below `normalize`'s floor of 1e-12, or whose square is infinite, lose their way.
    directions = functional.normalize(x / largest(x), dim=-1)
    return _near(directions @ functional.normalize(weight, dim=1).T)


def _near(cosine: Tensor) -> Tensor:
    return 2 - (2 - 2 * cosine).clamp(SMALLEST, 4).sqrt()
