"""RA-SAE: atoms are mixtures of data points, which makes them the same from run to run."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Architecture, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import at_least, at_least_one
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.errors import InputError

ROW_SUM = 10.0
"""What the trained weights of an atom add up to: Adam moves each by about the learning rate, which
must be small beside their sum, else the first steps would make all atoms the mean of all points."""


@register
@dataclass(frozen=True)
class Archetypal(TopK):
    """TopK with atoms that are the directions of A C + Λ: mixtures of fixed points C, and a bit.

    The points are directions of data: the initial atoms and further training rows. A has
    non-negative rows that add up to 1, rows of Λ have at most the norm `delta`; both are brought
    back after each step. With `delta` = 0 each atom lies in the cone of the points. An atom starts
    as the point of its number. The published scale e^m is left out, because atoms have norm 1.

    With `initialization="kmeans"` the points do not depend on the seed; with `"random"` the initial
    atoms are not data, and neither are their mixtures.

    Attributes:
        k: active latents of a row.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
        delta: how far an atom may leave the mixtures, the points having norm 1. The authors' code
            has 1, beside points as long as activations; here 1 would let an atom be nearly any
            direction, and nothing would hold runs together.
        points: number of points, at least one for each latent; None is twice the latents, or as
            many as the sample has. A step takes time in proportion.
    """

    name: ClassVar[str] = "archetypal"
    summary: ClassVar[str] = "TopK with atoms that are mixtures of data points (relaxed archetypes)"
    source: ClassVar[str] = "Fel et al. 2025, Archetypal SAE: RA-SAE"
    saelens: ClassVar[Architecture | None] = "topk"
    delta: float = 0.1
    points: int | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        super().__post_init__()
        at_least(0, delta=self.delta)
        at_least_one(points=1 if self.points is None else self.points)

    def prepare(self, start: Start) -> Tensors:
        """Return encoder and biases, and A, Λ and C; A and Λ are trained in the atoms' place.

        Raises:
            InputError: if there are fewer than k latents, or fewer points than latents.
        """
        t = super().prepare(start)
        n, n_points = start.n_latents, self.points or 2 * start.n_latents
        if n_points < n:
            raise InputError(
                f"{n_points} points are too few for {n} atoms, which each start as one; choose at "
                f"least {n} points, or fewer latents"
            )
        rows = start.rows.flip(0)[: n_points - n]  # the first may be the initial atoms
        rows = rows[torch.linalg.vector_norm(rows, dim=1) > 0]
        points = torch.cat([start.atoms, functional.normalize(rows, dim=1)])
        t["atoms"] = t["atoms"].detach()
        t["points"] = points
        t["weights"] = (ROW_SUM * torch.eye(n, len(points))).requires_grad_()
        t["relaxation"] = torch.zeros_like(start.atoms).requires_grad_()
        return t

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the loss of TopK with the atoms that A and Λ give."""
        # Built inside the graph: through the kept `atoms`, a copy, A and Λ would get no gradient.
        return super().loss({**t, "atoms": built(t)}, step)

    @torch.no_grad()
    def constrain(self, t: Tensors) -> None:
        """Bring A back to mixtures and Λ to its norm, and the atoms to what they give."""
        weights, relaxation = t["weights"], t["relaxation"]
        weights.clamp_(min=0)
        sums = weights.sum(1, keepdim=True)
        empty = (sums == 0).flatten().nonzero().flatten()
        weights[empty, empty] = 1.0  # it would have no atom and, being clamped, get no gradient
        weights *= ROW_SUM / weights.sum(1, keepdim=True)
        norms = torch.linalg.vector_norm(relaxation, dim=1, keepdim=True)
        # The floor is for Λ = 0, with which training begins.
        relaxation *= (self.delta / norms.clamp(min=1e-12)).clamp(max=1)
        # Whatever codes or decodes outside the loss reads `atoms`, and must find those of this
        # step.
        t["atoms"].copy_(built(t))


def mixtures(t: Tensors) -> Float[Tensor, "latents points"]:
    """Return A: how much of each point is in each atom."""
    return t["weights"] / ROW_SUM


def built(t: Tensors) -> Float[Tensor, "latents width"]:
    """Return the directions of A C + Λ; differentiable in A and Λ."""
    # Autocast may multiply in bfloat16; what follows is computed in the points' type.
    mixed = (mixtures(t) @ t["points"]).to(t["points"].dtype) + t["relaxation"]
    return functional.normalize(mixed, dim=1)
