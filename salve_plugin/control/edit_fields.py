"""An edit in a file, but for its tensors: typed fields, which say what may be there."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from salve_plugin.control.base import Base
from salve_plugin.control.provenance import Exactness, Provenance
from salve_plugin.control.targets import Target
from salve_plugin.errors import InputError
from salve_plugin.site import Site
from salve_plugin.store.record import Index, Record

RowNumbers = Annotated[
    tuple[Index, ...],
    Meta(min_length=1, max_length=1_000_000, extra_json_schema={"uniqueItems": True}),
]
"""Ascending rows of a weight, in a file."""


@dataclass(frozen=True)
class OperatorFields(Record):
    """What an edit does, but for its tensors `edit.*`.

    Attributes:
        form: gate: feature j of the site is multiplied by max(0, 1 - strength reach_j) (suppress)
            or 1 + strength reach_j (enhance); reach is the root of the sum of the squares of the
            rows of `edit.directions`. low_rank_map: x' = x + (scale - 1) U (V^T x - c) with the
            tensors write U, read V and offset c. low_rank_update: W' = W + A B^T, b' = b + d with
            the tensors left A, right B and shift d.
        mode: of a gate.
        scale: of a low-rank map: 0 removes, 1 changes nothing.
        strength: of a gate, in units of its directions.
    """

    form: Literal["gate", "low_rank_map", "low_rank_update"]
    mode: Literal["enhance", "suppress"] | UnsetType = UNSET
    scale: float | UnsetType = UNSET
    strength: Annotated[float, Meta(ge=0)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Check that these are the numbers of the form and of no other; cards rely on it.

        Raises:
            InputError: names those that are there and those that the form has.
        """
        # UNSET is a field that the file does not have; null would be one that it has.
        expected = {"gate": ["mode", "strength"], "low_rank_map": ["scale"]}.get(self.form, [])
        there = [name for name in ("mode", "scale", "strength") if getattr(self, name) is not UNSET]
        if there != expected:
            raise InputError(f"operator '{self.form}' has the numbers {there}, expected {expected}")


@dataclass(frozen=True)
class EditFields(Record):
    """An edit but for its tensors.

    Attributes:
        base: the model that it was made for: what it touches, and one digest over everything.
        exactness: how exactly the weights reproduce the change at a hidden site, as measured.
        operator: what it does.
        provenance: where the operator's directions come from.
        rows: the outputs of the readers (classes) that change, ascending; null for all.
        site: the activation that changes.
        targets: the parameters that take the change over.
    """

    base: Base
    exactness: Exactness | None
    operator: OperatorFields
    provenance: Provenance
    rows: RowNumbers | None
    site: Site
    targets: Annotated[tuple[Target, ...], Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            InputError: if a row is named twice.
        """
        # A JSON Schema says it with `uniqueItems`, which is for its readers: no type checks it
        # here.
        if self.rows is not None and len(set(self.rows)) < len(self.rows):
            raise InputError("a row is named twice; expected rows that differ from each other")
