"""SNMF: semi-nonnegative matrix factorization, signed atoms with codes that are not negative."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Solver, Start, Tensors
from salve_plugin.discover.learners.checks import at_least_one, between
from salve_plugin.discover.learners.registry import register

MAX_ROWS = 20_000
"""Training rows that are factorized, all of them in memory."""

FLOOR = 0.01
"""What the first code has where a row does not belong to a centre, where it has 1: what is zero,
multiplicative updates leave zero."""

RIDGE = 1e-6
"""Added to the diagonal of GᵀG, so that atoms without code do no harm."""


@register
@dataclass(frozen=True)
class Snmf(Solver):
    """Rows X ≈ G V with G ≥ 0: least squares for V and multiplicative updates for G, in turn.

    V = (GᵀG + 10⁻⁶)⁻¹ Gᵀ X, brought to unit norm; then G ← G ∘ √((P⁺ + G Q⁻) / (P⁻ + G Q⁺)) with
    P = X Vᵀ, Q = V Vᵀ and M^± = (|M| ± M) / 2 (Ding, Li & Jordan 2010), which never raises the
    error ‖X − G V‖. Up to 20 000 rows take part; G starts from k-means, whatever the
    initialization. It suits some hundred latents, and fewer than features: more than features fit
    everything, with dense codes.

    The code of a row is the z ≥ 0 that minimizes ‖x − b_d − z V‖², found by accelerated projected
    gradient descent with a fixed number of updates. It is sparse as far as non-negativity makes it.

    Attributes:
        iterations: pairs of updates.
        rho: share of the entries of each atom that is kept, those of largest size; the published
            0.01 is for layers of thousands of neurons. Below 1 the error may rise.
        updates: with which a row is coded.
    """

    name: ClassVar[str] = "snmf"
    summary: ClassVar[str] = "semi-nonnegative matrix factorization: signed atoms, codes z ≥ 0"
    source: ClassVar[str] = "Shafran et al. 2025, Decomposing MLP activations with semi-NMF"
    costly: ClassVar[Mapping[str, int]] = {"updates": 10_000}
    expansion: ClassVar[float] = 0.25
    iterations: int = 300
    rho: float = 1.0
    updates: int = 100

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        at_least_one(iterations=self.iterations, updates=self.updates)
        between(0, 1, rho=self.rho)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the non-negative least-squares code of correlations with the atoms."""
        return non_negative(pre, t["atoms"] @ t["atoms"].T, self.updates)

    def solve(self, start: Start, batches: Callable[[], Iterator[Tensor]]) -> Tensors:
        """Factorize up to 20 000 training rows, from spherical k-means of the same rows."""
        from salve_plugin.discover.training.start import (
            spherical_kmeans,  # it imports learners itself
        )

        rows = _first(batches(), MAX_ROWS)
        centres = spherical_kmeans(rows, start.n_latents)
        nearest = (rows @ centres.T).argmax(1, keepdim=True)
        code = rows.new_full((len(rows), start.n_latents), FLOOR).scatter_(1, nearest, 1.0)
        for _ in range(self.iterations):
            code, atoms = factorized(rows, code, centres, self.rho)
        return {
            "atoms": atoms,
            "encoder_weight": atoms.clone(),
            "encoder_bias": torch.zeros(len(atoms)),
            "decoder_bias": torch.zeros(rows.shape[1]),
        }


def factorized(
    rows: Float[Tensor, "rows width"],
    code: Float[Tensor, "rows latents"],
    fallback: Float[Tensor, "latents width"],
    rho: float = 1.0,
) -> tuple[Float[Tensor, "rows latents"], Float[Tensor, "latents width"]]:
    """Return the code G and the atoms V after one update of each: first V, then G.

    Args:
        rows: X.
        code: G, not negative.
        fallback: unit vectors for atoms that vanish because nothing uses them.
        rho: share of each atom's entries that is kept.
    """
    # In float64: the normal equations square the condition number, and in float32 the ridge would
    # vanish beside every diagonal entry above 32.
    gram = (code.T @ code).double()
    gram.diagonal().add_(RIDGE)
    atoms = torch.linalg.solve(gram, (code.T @ rows).double()).to(rows.dtype)
    if rho < 1:
        kept = max(1, round(rho * atoms.shape[1]))
        largest = atoms.abs().topk(kept, dim=1).indices
        atoms = torch.zeros_like(atoms).scatter(1, largest, atoms.gather(1, largest))
    norms = torch.linalg.vector_norm(atoms, dim=1)
    vanished = norms < torch.finfo(rows.dtype).eps
    atoms = torch.where(vanished[:, None], fallback, atoms / norms.clamp(min=1e-30)[:, None])
    # G V stays what it was when atoms are brought to unit norm; an atom that nothing uses gets a
    # fallback and no code.
    code = code * norms.masked_fill(vanished, 0)
    upper, lower = _parts(rows @ atoms.T)
    gram_upper, gram_lower = _parts(atoms @ atoms.T)
    ratio = (upper + code @ gram_lower) / (lower + code @ gram_upper).clamp(min=1e-12)
    # A product of non-negative numbers: G needs no projection to stay so.
    return code * ratio.sqrt(), atoms


def non_negative(
    pre: Float[Tensor, "*rows latents"], gram: Float[Tensor, "latents latents"], updates: int
) -> Float[Tensor, "*rows latents"]:
    """Return z ≥ 0 that about minimizes ½ z Q zᵀ − z preᵀ, row by row; differentiable.

    Projected gradient descent with Nesterov's momentum (Beck & Teboulle 2009). The step of each
    latent is the inverse of its row sum of |Q|: the diagonal matrix of those sums minus Q has no
    negative eigenvalue, so that no step overshoots. If `pre` is multiplied by a positive number, so
    is z.

    Args:
        pre: correlations with the atoms.
        gram: inner products of the atoms, Q.
        updates: number of steps.
    """
    step = 1 / gram.abs().sum(1)
    code = ahead = functional.relu(step * pre)
    pace = 1.0
    for _ in range(updates):
        moved = functional.relu(ahead - step * (ahead @ gram - pre))
        # Momentum does not lower the error in every step, but after n of them by 1/n² and not by
        # 1/n.
        next_pace = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = moved + (pace - 1) / next_pace * (moved - code)
        code, pace = moved, next_pace
    return code


def _parts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative part, both not negative."""
    return functional.relu(matrix), functional.relu(-matrix)


def _first(batches: Iterator[Tensor], count: int) -> Tensor:
    """Return the first rows of the pass, at most `count`."""
    taken: list[Tensor] = []
    for batch in batches:
        taken.append(batch)
        if sum(map(len, taken)) >= count:
            break
    return torch.cat(taken)[:count]
