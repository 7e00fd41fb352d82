"""PolySAE: the decoder adds products of two and three latents to the linear reconstruction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.kernels.sparse import Code
from salve_plugin.discover.learners.base import COMMON, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import at_least_one
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.topk import TopK

INITIAL_STRENGTHS = (-0.5, 0.5)
"""λ₂ and λ₃ at the start."""


@register
@dataclass(frozen=True)
class Poly(TopK):
    """TopK code z; x̂ = b_d + z V + λ₂ a² C₂ + λ₃ a³ C₃ with a = z U, powers by element.

    U has orthonormal columns, restored after each step by a QR decomposition. As published, the
    linear part is V = U C₁ᵀ, of which C₁ is square and can be inverted: the columns of U are those
    of V, mixed. So U = V M, where V are unit atoms as in other learners and M (width, rank) is
    trained: a is a linear function of the linear reconstruction. The quadratic term gives each pair
    of latents a direction of its own when both are active, see `interaction`.

    An atom is here not all that its latent does: that is the derivative of `decode` at the code.
    An edit must decode the edited code rather than add multiples of atoms.

    Attributes:
        k: active latents of a row.
        aux: weight of the auxiliary loss, in which dead latents predict with their atoms alone.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
        rank: columns of U, at most as many as atoms and features allow.
    """

    name: ClassVar[str] = "poly"
    summary: ClassVar[str] = "TopK code whose decoder also adds products of active latents"
    source: ClassVar[str] = "Koromilas et al. 2026, PolySAE"
    # What is raised to powers has no unit: cubes of raw activations, and what would take them back,
    # could leave the range of float32.
    extra: ClassVar[Mapping[str, int]] = {"mixing": -1, "pairs": 1, "triples": 1}
    rank: int = 64

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        super().__post_init__()
        at_least_one(rank=self.rank)

    def decode(self, t: Tensors, z: Float[Tensor, "*rows latents"]) -> Float[Tensor, "*rows width"]:
        """Return y + b_d + a² pairs + a³ triples with y = z V and a = y · mixing."""
        linear = z @ t["atoms"]
        return linear + t["decoder_bias"] + higher(t, linear)

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors, M, C₂ and C₃, and λ; all are trained.

        Raises:
            InputError: if there are fewer than k latents.
        """
        t = super().prepare(start)
        rank, width = min(self.rank, *start.atoms.shape), start.atoms.shape[1]
        # The main directions of the atoms, as far as they have any.
        _, sizes, directions = torch.linalg.svd(start.atoms, full_matrices=False)
        # With V = A S Bᵀ and M = B / S, the columns of V M are those of A: orthonormal, as
        # `constrain` keeps them. The floor keeps M small in directions that no atom has.
        t["mixing"] = (directions[:rank] / sizes[:rank, None].clamp(min=1e-3)).T.contiguous()
        for name in ("quadratic", "cubic"):
            t[name] = torch.randn(rank, width, generator=start.random) / math.sqrt(rank)
        t["strengths"] = torch.tensor(INITIAL_STRENGTHS)
        for name in ("mixing", "quadratic", "cubic", "strengths"):
            t[name].requires_grad_()
        return t

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² + aux · AuxK."""
        return super().loss({**t, **_terms(t)}, step)

    def misfit(
        self, t: Tensors, x: Float[Tensor, "rows width"], code: Code
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows width"]]:
        """Return the mean over rows of ‖x − x̂‖², and x − x̂."""
        linear = code.decode(t["atoms"])
        error = x - linear - t["decoder_bias"] - higher(t, linear)
        return error.square().sum(-1).mean(), error

    def constrain(self, t: Tensors) -> None:
        """Bring the atoms to unit norm, and the columns of V M to an orthonormal basis."""
        super().constrain(t)
        # V M = Q R, hence V (M R⁻¹) = Q: M takes up the change, and the atoms keep unit norm.
        _, r = torch.linalg.qr(t["atoms"] @ t["mixing"])
        # QR leaves the signs open: without this, columns of U would flip from step to step, and
        # what is trained for them be wrong.
        r = r * torch.where(r.diagonal() < 0, -1.0, 1.0)[:, None]
        t["mixing"].copy_(torch.linalg.solve_triangular(r, t["mixing"], upper=True, left=False))

    def finished(self, t: Tensors) -> Tensors:
        """Return the four tensors, and what the higher terms need."""
        finished = {**t, **_terms(t)}
        return {name: finished[name].detach().clone() for name in (*COMMON, *self.extra)}


def higher(t: Tensors, linear: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Return the terms of second and third order, a² pairs + a³ triples, of a = y · mixing."""
    a = linear @ t["mixing"]
    return a.square() @ t["pairs"] + a.pow(3) @ t["triples"]


def interaction(t: Tensors, one: int, other: int) -> Float[Tensor, " width"]:
    """Return the direction w that two latents add together: z₁ z₂ w, of second order.

    Args:
        t: tensors of a finished dictionary.
        one: a latent.
        other: another.
    """
    a, b = (t["atoms"][latent] @ t["mixing"] for latent in (one, other))
    return 2 * (a * b) @ t["pairs"]


def _terms(t: Tensors) -> Tensors:
    """Return λ₂ C₂ and λ₃ C₃."""
    return {
        "pairs": t["strengths"][0] * t["quadratic"],
        "triples": t["strengths"][1] * t["cubic"],
    }
