"""ITDA: a dictionary of real activations, chosen in one pass and without gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.learners.base import Solver, Start, Tensors
from salve_plugin.discover.learners.checks import at_least_one, between, fits
from salve_plugin.discover.learners.growing import GrowingAtoms
from salve_plugin.discover.learners.pursuit import pursuit_code
from salve_plugin.discover.learners.registry import register
from salve_plugin.errors import InputError

MAX_CHUNK = 256
"""Rows that are coded with the same atoms: at most these, and a quarter of the atoms there are."""


@register
@dataclass(frozen=True)
class Itda(Solver):
    """Atoms are training rows that the atoms before them did not explain.

    One pass over the rows: each is coded by signed matching pursuit with k of the atoms so far;
    if its relative error ‖x − x̂‖² / ‖x‖² exceeds `tau`, x / ‖x‖ becomes an atom, until there are
    n_latents or no more rows. There may be fewer atoms in the end. Rows are taken a few at a time;
    of those with one direction, cos² ≥ 1 − tau, only the first becomes an atom.

    An atom's source, the place of its row in the pass, is kept as the extra tensor `sources`: it
    names the example that the atom is, and `jaccard` compares two models by the sources that their
    dictionaries share, if both saw the same examples in the same order.

    Attributes:
        k: steps of the pursuit; a row has at most so many active latents.
        tau: relative error above which a row becomes an atom.
    """

    name: ClassVar[str] = "itda"
    summary: ClassVar[str] = "atoms are training examples, found in one pass without gradients"
    source: ClassVar[str] = "Leask et al. 2025, Inference-time decomposition of activations, ICML"
    costly: ClassVar[Mapping[str, int]] = {"k": 4096}
    extra: ClassVar[Mapping[str, int]] = {"sources": 0}
    l0_control: ClassVar[Literal["k", "weight"] | None] = "k"
    k: int = 32
    tau: float = 0.1

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        at_least_one(k=self.k)
        between(0, 1, tau=self.tau)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the code of k steps of signed matching pursuit; differentiable in `pre`."""
        return pursuit_code(pre, t["atoms"], self.k, signed=True)

    def solve(self, start: Start, batches: Callable[[], Iterator[Tensor]]) -> Tensors:
        """Choose the atoms in one pass.

        Raises:
            InputError: if there are fewer than k latents.
        """
        fits(self.k, start.n_latents)
        growing = GrowingAtoms(start.rows.shape[1])
        for batch in batches():
            while len(batch) and len(growing.atoms) < start.n_latents:
                # The rows of a chunk do not see the atoms that the chunk itself adds: it stays
                # small while there are few atoms, when many rows add one.
                size = min(MAX_CHUNK, max(1, len(growing.atoms) // 4))
                growing.add(batch[:size], self.k, self.tau, start.n_latents)
                batch = batch[size:]
            if len(growing.atoms) == start.n_latents:
                break
        if not len(growing.atoms):
            raise InputError("every training row equals the mean of all: there is no atom to take")
        return {
            "atoms": growing.atoms,
            "encoder_weight": growing.atoms.clone(),
            "encoder_bias": torch.zeros(len(growing.atoms)),
            "decoder_bias": torch.zeros(start.rows.shape[1]),
            # A dictionary has tensors of floating numbers only; float64 holds every place exactly.
            "sources": torch.tensor(growing.sources, dtype=torch.float64),
        }


def jaccard(a: Iterable[int] | Tensor, b: Iterable[int] | Tensor) -> float:
    """Return the share of sources that two dictionaries have in common, |A ∩ B| / |A ∪ B|.

    It compares two models that read the same examples: the more alike they represent them, the more
    often the same examples become atoms (Leask et al. 2025).

    >>> jaccard([1, 2, 3], [2, 3, 4])
    0.5

    Args:
        a: the sources of one dictionary's atoms.
        b: those of the other's.

    Raises:
        InputError: if both are empty.
    """
    of_a, of_b = (set(torch.as_tensor(list(ids)).tolist()) for ids in (a, b))
    if not of_a | of_b:
        raise InputError("neither dictionary has sources, so that there is nothing to compare")
    return len(of_a & of_b) / len(of_a | of_b)
