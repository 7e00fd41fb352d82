"""What an edit adds to the parameters of each layer, as tensors that can be scaled and summed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from salve_plugin.control.base import Fingerprint
from salve_plugin.control.edit import Edit, check_edit
from salve_plugin.control.edited import entries_of, mismatch
from salve_plugin.control.ledger import ledger_of
from salve_plugin.control.operators import LowRankUpdate, Part
from salve_plugin.control.rows import Rows, index_of, take
from salve_plugin.control.slots import slots_of
from salve_plugin.errors import BaseMismatchError, EditStateError, InputError

NEGLIGIBLE = 1e-12
"""Singular values below this share of the largest are what rounding left of a low rank."""


@dataclass(frozen=True, eq=False)
class LayerChange:
    """What an edit adds to one layer.

    Attributes:
        path: of the layer in the bare model.
        rows: outputs that change; None means all.
        tensors: by parameter path, what is added, in the parameter's shape, float64; the weight
            first, then the bias if it changes.
    """

    path: str
    rows: Rows
    tensors: dict[str, Float64[Tensor, "..."]]

    def spread(self, scales: Float64[Tensor, " blocks"]) -> Float64[Tensor, " outputs"]:
        """Return the scale of each output: blocks are runs of outputs of about equal length."""
        outputs = len(next(iter(self.tensors.values())))
        block = torch.arange(outputs) * len(scales) // outputs
        return scales[block]

    def update(self, scales: Float64[Tensor, " blocks"]) -> LowRankUpdate:
        """Return the update of the layer that adds so much of the change."""
        weight, *biases = (take(change, self.rows) for change in self.tensors.values())
        factors = take(self.spread(scales.detach()), self.rows)
        # Scales multiply outputs, which are the rows of the left factor: the right one stays as it
        # is.
        left, sizes, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        kept = sizes > NEGLIGIBLE * sizes.max()
        return LowRankUpdate(
            factors[:, None] * left[:, kept] * sizes[kept],
            right[kept].T.contiguous(),
            factors * biases[0] if biases else None,
        )


@torch.no_grad()
def changes_of(model: nn.Module, edit: Edit) -> list[LayerChange]:
    """Return what an edit adds to each layer that it changes.

    Raises:
        InputError: if it is no edit, or one of tied weights or of a slice of a fused one.
        BaseMismatchError: if the model is not the one that it was made for.
        EditStateError: if other edits are on the same parameters.
    """
    check_edit(edit)
    weights = [target.weight for target in edit.targets]
    if len(set(weights)) < len(weights) or any(t.outputs is not None for t in edit.targets):
        raise InputError(
            f"{edit!r} changes tied weights or a slice of a fused one, which have no scale of "
            "their own; leave it out"
        )
    slots = slots_of(model, edit.base.tensors)
    for path, slot in slots.items():
        if ledger_of(slot) is not None:
            raise EditStateError(f"other edits are on '{path}'; revert them first")
        # A gate's change is a share of the weights: of others than it was made for it is another
        # change.
        fingerprint = Fingerprint.of(slot.parameter)
        if fingerprint != edit.base.tensors[path]:
            raise BaseMismatchError(mismatch(path, edit, fingerprint))

    def pristine(path: str, rows: Rows) -> Tensor:
        return take(slots[path].parameter.detach(), rows)

    added: dict[str, Tensor] = {}
    for path, entry in entries_of(edit, pristine):
        rows = pristine(path, entry.rows).cpu().double()
        change = torch.zeros(slots[path].parameter.shape, dtype=torch.float64)
        change[index_of(entry.rows)] = _added(entry.part, rows)
        added[path] = change
    changes = []
    for target in edit.targets:
        own = {path: added[path] for path in target.paths}
        changes.append(LayerChange(target.weight.rpartition(".")[0], edit.rows, own))
    return changes


def _added(part: Part, rows: Tensor) -> Tensor:
    """Return what a part adds to pristine rows: their factors less one, and its product."""
    every = slice(None)
    factors, product = part.factors_at(every), part.added_at(every)
    total = torch.zeros_like(rows) if factors is None else rows * (factors - 1)
    return total if product is None else total + product
