"""Atoms that are added to while rows are read: those rows that the atoms so far do not explain."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.pursuit import MAX_GRAM, gram_rows, pursue

NO_ROW = 1e-12
"""Squared norm, the mean being 1, below which a row has no direction to become an atom."""


class GrowingAtoms:
    """Atoms that are rows, in the order in which those were read.

    Attributes:
        atoms: so far (atoms, width), of unit norm.
        sources: the place of each atom's row among all rows read.
        seen: rows read.
    """

    def __init__(self, width: int) -> None:
        """Start without atoms."""
        self.atoms: Float[Tensor, "atoms width"] = torch.zeros(0, width)
        self.sources: list[int] = []
        self.seen = 0
        # Every row's pursuit reads k of its rows. It grows with the atoms, by a border: computed
        # anew for each few rows, it would cost more than the pursuits themselves.
        self._gram = torch.zeros(0, 0)

    def add(self, rows: Float[Tensor, "rows width"], k: int, tau: float, n_latents: int) -> None:
        """Take those rows as atoms that the atoms so far do not explain.

        Args:
            rows: the next ones, centred and with mean squared norm 1.
            k: steps of the pursuit that codes each.
            tau: relative error above which a row is not explained.
            n_latents: most atoms that there may be.
        """
        norms = rows.square().sum(1)
        left = norms
        if len(self.atoms):
            rows_of = self._gram_row if len(self.atoms) <= MAX_GRAM else gram_rows(self.atoms, 0)
            pursuit = pursue(rows @ self.atoms.T, rows_of, k, signed=True)
            # Each step lowers the squared error by the square of what it took.
            left = norms - pursuit.values.square().sum(1)
        candidates = ((left > tau * norms) & (norms > NO_ROW)).nonzero().flatten()
        directions = functional.normalize(rows[candidates], dim=1)
        kept = apart(directions, tau)[: n_latents - len(self.atoms)]
        self.sources += [self.seen + int(row) for row in candidates[kept]]
        self.seen += len(rows)
        self._append(directions[kept])

    def _gram_row(self, latents: Tensor) -> Tensor:
        return self._gram.index_select(0, latents)

    def _append(self, new: Tensor) -> None:
        cross = new @ self.atoms.T
        if len(self.atoms) + len(new) <= MAX_GRAM:
            above = torch.cat([self._gram, cross.T], dim=1)
            self._gram = torch.cat([above, torch.cat([cross, new @ new.T], dim=1)])
        self.atoms = torch.cat([self.atoms, new])


def apart(directions: Float[Tensor, "rows width"], tau: float) -> Int[Tensor, " kept"]:
    """Return the rows left after removing those that an earlier one explains: cos² ≥ 1 − tau.

    Args:
        directions: of unit norm.
        tau: relative error that explains.
    """
    explained = (directions @ directions.T).square() >= 1 - tau
    covered = torch.zeros(len(directions), dtype=torch.bool)
    kept = []
    for row in range(len(directions)):
        if not covered[row]:
            kept.append(row)
            covered |= explained[row]
    return torch.tensor(kept, dtype=torch.long)
