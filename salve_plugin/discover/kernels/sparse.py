"""Sparse products for training: a step costs one dense product, whatever the dictionary's size.

A code with k of n latents active needs k/n of what dense products compute, and so do the gradients
of encoder and decoder, because latents that are not active have none. Codes are compressed sparse
rows (CSR): the active latents of all rows one after the other.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.kernels.selection import true_places

CONVERTED_FROM = 8
"""How often a row must be read for its conversion to bfloat16 to pay."""

KEPT_FROM = 2**20
"""Numbers in a gradient from which the time for fresh memory is worth avoiding."""


# Compared by identity: == between tensors is one of elements, which has no truth value.
@dataclass(frozen=True, eq=False)
class Support:
    """Which latents of which rows may be non-zero.

    Attributes:
        starts: where each row's latents begin, and where the last row's end (rows + 1,), int32.
        latents: active latents, row after row (active,), int32.
        n_latents: number of latents.
        known: the pre-activations there, if choosing them found them (active,).
        scratch: memory for the gradients of one step.
    """

    starts: Int[Tensor, " rows_and_one"]
    latents: Int[Tensor, " active"]
    n_latents: int
    known: Float[Tensor, " active"] | None = None
    scratch: Scratch | None = None

    @classmethod
    def of_indices(
        cls,
        latents: Int[Tensor, "rows k"],
        n_latents: int,
        known: Float[Tensor, "rows k"] | None = None,
        scratch: Scratch | None = None,
    ) -> "Support":
        """Take k latents in each row, whose pre-activations may be known."""
        rows, k = latents.shape
        # Half the bytes of int64 to read in each product, and enough: the entries of one batch.
        starts = torch.arange(0, rows * k + 1, k, dtype=torch.int32, device=latents.device)
        values = None if known is None else known.flatten()
        return cls(starts, latents.flatten().int(), n_latents, values, scratch)

    @classmethod
    def of_mask(
        cls, mask: Bool[Tensor, "rows latents"], scratch: Scratch | None = None
    ) -> "Support":
        """Take the latents where the mask is true."""
        n_rows, n_latents = mask.shape
        entries = true_places(mask)
        # They are in order, so that where a row starts is found by bisection: counting each row's
        # would read the whole mask once more.
        ends = torch.arange(n_rows + 1, device=mask.device) * n_latents
        starts = torch.searchsorted(entries, ends)
        return cls(starts.int(), (entries % n_latents).int(), n_latents, None, scratch)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    @cached_property
    def rows(self) -> Int[Tensor, " active"]:
        """The row of each active latent."""
        # The output's size is given: on a GPU, finding it out would wait for all work before.
        counts = self.starts.diff()
        return torch.repeat_interleave(
            torch.arange(self.n_rows, device=counts.device), counts, output_size=len(self.latents)
        )

    def counts(self) -> Int[Tensor, " latents"]:
        """Return in how many rows each latent is active."""
        return torch.bincount(self.latents, minlength=self.n_latents)

    @cached_property
    def _entries(self) -> Int[Tensor, " active"]:
        """Where in the flattened matrix each entry is."""
        # In int64, as `rows` are: the int32 of the latents would overflow where rows times latents
        # reach 2³¹.
        return self.rows * self.n_latents + self.latents

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each latent's entries start once sorted by latent, their rows, and their order."""
        # The gradients of encoder and atoms need a sum over rows for each latent, that is the
        # transpose of the code: sorted once, it serves every product of the step. The fewer bytes
        # a key has, the fewer passes a radix sort takes; stable, because the order in which rows
        # are added up must not differ between two runs.
        keys = self.latents.short() if self.n_latents <= 2**15 else self.latents
        order = keys.argsort(stable=True)
        starts = torch.zeros(self.n_latents + 1, dtype=torch.int32, device=order.device)
        starts[1:] = self.counts().cumsum(0)
        return starts, self.rows.index_select(0, order).int(), order

    def gather(self, dense: Float[Tensor, "rows latents"]) -> Float[Tensor, " active"]:
        """Return the values of a dense matrix at the support."""
        return dense.flatten().index_select(0, self._entries)

    def dense(self, values: Float[Tensor, " active"]) -> Float[Tensor, "rows latents"]:
        """Return the dense matrix with these values at the support and zero elsewhere."""
        matrix = values.new_zeros(self.n_rows * self.n_latents)
        return matrix.index_put((self._entries,), values).view(self.n_rows, self.n_latents)

    def sum_rows(
        self, values: Float[Tensor, " active"], rows: Float[Tensor, "rows width"]
    ) -> Float[Tensor, "latents width"]:
        """Return zᵀ x: for each latent the sum of the rows, weighted by the values there.

        A large one is in memory that the scratch, if there is one, lends.
        """
        starts, of_rows, order = self._by_latent
        weights = values.index_select(0, order)
        width = rows.shape[1]
        # A small result comes from memory that the processor has at hand. A large one is a fresh
        # page fault for each 4 kB unless the scratch lends it; but bags cannot write into memory
        # that is given to them, so that CSR times dense does it, whose `out` can.
        if self.scratch is None or self.n_latents * width < KEPT_FROM:
            return _bags(starts, of_rows, weights, rows).to(rows.dtype)
        sums = self.scratch.take(self.n_latents, width, rows)
        if torch.is_autocast_enabled(rows.device.type):
            # Autocast passes products with `out` by: bags take its type, and their result is
            # copied.
            return sums.copy_(_bags(starts, of_rows, weights, rows))
        code = _compressed(starts, of_rows, weights, self.n_rows)
        # With `beta` 0, what is left over in the lent memory does not enter.
        return torch.addmm(sums, code, rows, beta=0, out=sums)

    def sum_latents(
        self, values: Float[Tensor, " active"], atoms: Float[Tensor, "latents width"]
    ) -> Float[Tensor, "rows width"]:
        """Return z V: for each row the sum of its latents' atoms, weighted by the values."""
        return _bags(self.starts, self.latents, values, atoms).to(atoms.dtype)

    def products(
        self, rows: Float[Tensor, "rows width"], atoms: Float[Tensor, "latents width"]
    ) -> Float[Tensor, " active"]:
        """Return x Vᵀ at the support only, walking once through the larger of the two."""
        # A sampled product goes through one matrix row by row and reads from the other what each
        # row needs: the larger is best gone through in order, and the smaller, which more likely
        # fits into the cache, jumped about in.
        zeros = torch.zeros(len(self.latents), dtype=rows.dtype, device=rows.device)
        if self.n_latents <= self.n_rows:
            pattern = _compressed(self.starts, self.latents, zeros, self.n_latents)
            by_row: Tensor = torch.sparse.sampled_addmm(pattern, rows, atoms.T, beta=0.0)
            return by_row.values()
        starts, of_rows, order = self._by_latent
        pattern = _compressed(starts, of_rows, zeros, self.n_rows)
        by_latent: Tensor = torch.sparse.sampled_addmm(pattern, atoms, rows.T, beta=0.0)
        # They come out sorted by latent; each goes back to where its row has it.
        return zeros.index_copy_(0, order, by_latent.values())


def _bags(starts: Tensor, members: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Return for each bag the weighted sum of its members' rows, in the type that autocast says.

    The time goes into reading rows, so that half as many bytes take little more than half of it,
    unless rows are read too seldom for the conversion to pay.
    """
    often = len(members) > CONVERTED_FROM * len(rows)
    if often and torch.is_autocast_enabled(rows.device.type):
        rows = rows.to(torch.get_autocast_dtype(rows.device.type))
    return functional.embedding_bag(
        members, rows, starts[:-1], mode="sum", per_sample_weights=weights.to(rows.dtype)
    )


def _compressed(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    """Return a CSR matrix of so many columns."""
    with warnings.catch_warnings():
        # Invariants are not checked: that would read all columns in every product of every step.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, columns, values, (len(starts) - 1, width), check_invariants=False
        )


@dataclass(frozen=True, eq=False)
class Code:
    """The code of a batch, sparse or dense.

    Attributes:
        values: at the support (active,), or of all latents (rows, latents) without one.
        support: which latents the values are of; None if of all.
    """

    values: Tensor
    support: Support | None = None

    def at(self, vector: Float[Tensor, " latents"]) -> Tensor:
        """Return one number per latent beside each value."""
        return vector if self.support is None else vector[self.support.latents]

    def replaced(self, values: Tensor) -> "Code":
        """Return other values at the same places."""
        return Code(values, self.support)

    def decode(self, atoms: Float[Tensor, "latents width"]) -> Float[Tensor, "rows width"]:
        """Return z V; differentiable in values and atoms."""
        if self.support is None:
            return self.values @ atoms
        return decode_at(self.values, self.support, atoms)

    def counts(self, above: float = 0.0) -> Int[Tensor, " latents"]:
        """Return in how many rows the size of each latent is above a bound."""
        active = self.values.detach().abs() > above
        if self.support is None:
            return active.sum(0)
        latents = self.support.latents
        none = torch.zeros(self.support.n_latents, dtype=torch.int64, device=active.device)
        return none.index_add_(0, latents, active.long())


def decode_at(
    values: Float[Tensor, " active"],
    support: Support,
    atoms: Float[Tensor, "latents width"],
) -> Float[Tensor, "rows width"]:
    """Return the sum of the atoms weighted by each row's code, z V; differentiable in both."""
    rows: Tensor = _DecodeAt.apply(values, atoms, support)
    return rows


class _DecodeAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, atoms: Tensor, support: Support) -> Tensor:
        ctx.save_for_backward(values, atoms)
        ctx.support = support
        return support.sum_latents(values, atoms)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, atoms = ctx.saved_tensors
        support: Support = ctx.support
        # Autograd may hand over an expanded or a transposed matrix, whose rows are none in memory.
        gradient = gradient.contiguous()
        for_values = for_atoms = None
        if ctx.needs_input_grad[0]:
            for_values = support.products(gradient, atoms)
        if ctx.needs_input_grad[1]:
            for_atoms = support.sum_rows(values, gradient)
        return for_values, for_atoms, None
