"""Which edits are on a model, and which of them meet on the same rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from salve_plugin.control.base import bare
from salve_plugin.control.edit import Edit
from salve_plugin.control.ledger import ATTRIBUTE, Ledger, common_rows


@dataclass(frozen=True)
class AppliedEdit:
    """An edit that is on the model, and the weights that it touches."""

    edit: Edit
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Two edits that scale the same rows of the same weight; None means all rows."""

    first: Edit
    second: Edit
    tensor: str
    rows: tuple[int, ...] | None


@dataclass(frozen=True)
class Status:
    """What is applied to a model.

    Attributes:
        applied: in order of application.
        overlaps: pairs of edits whose effects multiply on the same rows of the same weight.
    """

    applied: tuple[AppliedEdit, ...]
    overlaps: tuple[Overlap, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values; edits are named by their digests."""
        return {
            "applied": [
                {
                    "digest": entry.edit.digest,
                    "mode": entry.edit.mode,
                    "latent": entry.edit.latent,
                    "strength": entry.edit.strength,
                    "rows": None if entry.edit.rows is None else list(entry.edit.rows),
                    "tensors": list(entry.tensors),
                }
                for entry in self.applied
            ],
            "overlaps": [
                {
                    "first": overlap.first.digest,
                    "second": overlap.second.digest,
                    "tensor": overlap.tensor,
                    "rows": None if overlap.rows is None else list(overlap.rows),
                }
                for overlap in self.overlaps
            ],
        }


def status(model: nn.Module) -> Status:
    """Return what is applied to `model`, in order, and which edits overlap."""
    tensors: dict[Edit, list[str]] = {}
    overlaps: list[Overlap] = []
    for name, module in bare(model).named_modules():
        ledger = module.__dict__.get(ATTRIBUTE)
        if not isinstance(ledger, Ledger):
            continue
        path = f"{name}.weight" if name else "weight"
        for edit in ledger.edits:
            tensors.setdefault(edit, []).append(path)
        overlaps += overlaps_on(path, ledger.edits)
    applied = tuple(AppliedEdit(edit, tuple(paths)) for edit, paths in tensors.items())
    return Status(applied, tuple(overlaps))


def overlaps_on(tensor: str, edits: Sequence[Edit]) -> Iterator[Overlap]:
    """Yield the pairs of edits of one weight that scale the same rows of it."""
    for first, second in combinations(edits, 2):
        rows = common_rows(first.rows, second.rows)
        if rows is None or rows:
            yield Overlap(first, second, tensor, rows)
