"""Matching pursuit on correlations: it needs pre-activations and the atoms' Gram matrix only.

Pursuit subtracts from a residual r the part along its best atom, r ← r − c_j d_j. Its correlations
with all atoms, c = r Vᵀ, then change by −c_j (V Vᵀ)_j, so that the rows themselves are not needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

MAX_GRAM = 8192
"""Atoms up to which the Gram matrix is kept, of then 256 MB; beyond, its rows are recomputed."""

BLOCKS, LEAST_BLOCK = 8, 256
"""Blocks of rows in which the Gram matrix is computed; smaller ones gain less than they cost."""

GramRows = Callable[[Tensor], Tensor]
"""From atoms' numbers (rows,) to their inner products with all atoms (rows, latents)."""


def gram_rows(atoms: Float[Tensor, "latents width"], uses: int) -> GramRows:
    """Return what gives rows of V Vᵀ: at once if `uses` of them cost more, else one by one."""
    if len(atoms) <= min(uses, MAX_GRAM):
        gram = gram_matrix(atoms)
        return lambda latents: gram.index_select(0, latents)
    return lambda latents: (atoms[latents] @ atoms.T).to(atoms.dtype)


def gram_matrix(atoms: Float[Tensor, "latents width"]) -> Float[Tensor, "latents latents"]:
    """Return V Vᵀ; it is symmetric, so that little more than half of it is computed."""
    n = len(atoms)
    gram = atoms.new_empty(n, n)
    size = max(LEAST_BLOCK, n // BLOCKS)
    for start in range(0, n, size):
        block = atoms[start : start + size] @ atoms[start:].T
        gram[start : start + size, start:] = block
        gram[start:, start : start + size] = block.T
    return gram


@dataclass(frozen=True, eq=False)
class Pursuit:
    """Which atoms a pursuit took; an atom can be taken more than once.

    Attributes:
        latents: in the order of the steps (rows, k).
        values: what each step took, c (rows, k), without gradient; the squared norm of the
            residual falls by its square.
        triangle: inner products of a step's atom with those of earlier steps, strictly below the
            diagonal (rows, k, k).
    """

    latents: Int[Tensor, "rows k"]
    values: Float[Tensor, "rows k"]
    triangle: Float[Tensor, "rows k k"]

    @property
    def on(self) -> Bool[Tensor, "rows k"]:
        """Which steps took something."""
        return self.values != 0

    def dense(
        self, values: Float[Tensor, "rows k"], n_latents: int
    ) -> Float[Tensor, "rows latents"]:
        """Return the code: each atom's values added up."""
        return values.new_zeros(len(values), n_latents).scatter_add(1, self.latents, values)


@torch.no_grad()
def pursue(pre: Float[Tensor, "rows latents"], gram: GramRows, k: int, *, signed: bool) -> Pursuit:
    """Take k times the atom of the largest correlation with what is left (Mallat & Zhang 1993).

    Args:
        pre: correlations of the rows with the atoms, (x − b_d) Vᵀ.
        gram: gives rows of V Vᵀ; atoms have unit norm.
        k: number of steps.
        signed: choose by magnitude. Otherwise by value, and a row stops once none is positive.
    """
    left = pre.clone()
    latents = torch.zeros(len(pre), k, dtype=torch.long, device=pre.device)
    values, triangle = pre.new_zeros(len(pre), k), pre.new_zeros(len(pre), k, k)
    for step in range(k):
        best = (left.abs() if signed else left).argmax(1)
        value = left.gather(1, best[:, None])
        # A row with no positive correlation left takes 0. That changes nothing, so that it takes 0
        # in all steps that follow, as `solved` relies on.
        value = value if signed else functional.relu(value)
        products = gram(best)
        # Strictly below the diagonal: an atom's product with itself is 1, and `solved` knows it.
        triangle[:, step, :step] = products.gather(1, latents[:, :step])
        latents[:, step], values[:, step] = best, value[:, 0]
        left.addcmul_(value, products, value=-1)
    return Pursuit(latents, values, triangle)


def solved(
    correlations: Float[Tensor, "rows k"],
    triangle: Float[Tensor, "rows k k"],
    on: Bool[Tensor, "rows k"],
) -> Float[Tensor, "rows k"]:
    """Return what each step of a pursuit takes, differentiable.

    Step t takes c_t = ⟨d_t, x − b_d⟩ − Σ_{s<t} ⟨d_t, d_s⟩ c_s: a triangular system. A pursuit that
    stopped is left out by `on`; as no step follows one that took nothing, the others are right.

    Args:
        correlations: of each step's atom with the row itself, ⟨d_t, x − b_d⟩.
        triangle: inner products of the steps' atoms; only those below the diagonal are read.
        on: which steps took something.
    """
    steps: Tensor = torch.linalg.solve_triangular(
        triangle, correlations.unsqueeze(-1), upper=False, unitriangular=True
    )
    return steps.squeeze(-1) * on


def pursuit_code(
    pre: Float[Tensor, "*rows latents"],
    atoms: Float[Tensor, "latents width"],
    k: int,
    *,
    signed: bool,
) -> Float[Tensor, "*rows latents"]:
    """Return the code of k steps of matching pursuit; differentiable in `pre`, not in `atoms`."""
    flat = pre.reshape(-1, pre.shape[-1])
    pursuit = pursue(flat, gram_rows(atoms, k * len(flat)), k, signed=signed)
    values = solved(flat.gather(1, pursuit.latents), pursuit.triangle, pursuit.on)
    return pursuit.dense(values, pre.shape[-1]).view_as(pre)
