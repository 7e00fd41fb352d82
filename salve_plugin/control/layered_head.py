"""A classifier's weight taken apart as a further edit finds it.

Everything is computed from the pristine rows: a gate scales these and what other gates left of
them, but not what edits of low rank have added; a map adds what it makes of the pristine rows. On a
classifier that carries edits the weight alone does therefore not tell what one more does to it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.base import bare
from salve_plugin.control.formula import Ledger, at, covered, pieces, put
from salve_plugin.control.ledger import ledger_of, pristine_of
from salve_plugin.control.slots import slots_of
from salve_plugin.errors import UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site


@dataclass(frozen=True, eq=False)
class LayeredHead:
    """The weight that reads a site, in float64: `scaled` plus `added`.

    Attributes:
        pristine: without any edit, which is what a map is made of, (classes, width).
        scaled: what a further gate scales, (classes, width).
        added: what edits of low rank have added, which no gate scales; None if there is none.
    """

    pristine: Float64[Tensor, "classes width"]
    scaled: Float64[Tensor, "classes width"]
    added: Float64[Tensor, "classes width"] | None

    @classmethod
    @torch.no_grad()
    def of(cls, hooked: HookedModel, site: Site, weight: Tensor) -> "LayeredHead":
        """Take apart the weight of the classifier's layers that read the site.

        Args:
            hooked: the model, with the edits that are on it.
            site: what the layers read.
            weight: of all of them together, as `HookedModel.unembed` gives it, in float64.
        """
        paths = [f"{path}.weight" for path in site.readers if path in hooked.heads]
        try:
            slots = slots_of(bare(hooked), paths)
        except UnsupportedModelError:
            # Quantized, or computed from others: what takes no edit carries none.
            slots = {}
        ledgers = {path: ledger_of(slot) for path, slot in slots.items()}
        if not any(ledgers.values()):
            return cls(weight, weight, None)
        pristine, scaled, current = [], [], []
        for path, slot in slots.items():
            share, ledger = hooked.heads[path.removesuffix(".weight")], ledgers[path]
            own = slot.parameter.detach()
            before = pristine_of(slot)
            pristine.append(share * before.cpu().double().flatten(1))
            current.append(share * own.cpu().double().flatten(1))
            adds = ledger is not None and any(e.part.left is not None for e in ledger.entries)
            # Without a sum the weight itself is what the gates left, rounded as it is.
            kept = own if ledger is None or not adds else _scaled(before, ledger)
            scaled.append(share * kept.cpu().double().flatten(1))
        base, gated, whole = (torch.stack(each).sum(0) for each in (pristine, scaled, current))
        added = whole - gated
        return cls(base, gated, added if bool(added.any()) else None)

    @property
    def is_plain(self) -> bool:
        """Whether the weight alone tells what an edit does to it."""
        return self.added is None and torch.equal(self.pristine, self.scaled)

    def mirrored(self) -> "LayeredHead":
        """Return the two rows of one logit: what speaks against it, and what speaks for it."""
        added = None if self.added is None else torch.cat([-self.added, self.added])
        return LayeredHead(
            torch.cat([-self.pristine, self.pristine]),
            torch.cat([-self.scaled, self.scaled]),
            added,
        )


def _scaled(pristine: Tensor, ledger: Ledger) -> Tensor:
    """Return a weight with the factors of all gates that are on it, and nothing added."""
    weight = pristine.cpu().double()
    for rows, source, formula in pieces(covered(pristine, ledger), ledger):
        if formula.factors is not None:
            values = at(ledger.pristine, source).cpu().double() * formula.factors
            put(weight, rows, values)
    return weight
