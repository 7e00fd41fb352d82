"""What several edits make of one model together: every touched weight before and after all of them.

The edits of one weight compose as the product of their multipliers, from the pristine rows and
independent of order, see `salve_plugin.control.ledger`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from salve_plugin.control.application import pristine_fingerprint
from salve_plugin.control.applied_edits import overlaps_on
from salve_plugin.control.base import Fingerprint, bare, find_readers
from salve_plugin.control.edit import Edit
from salve_plugin.control.edited import mismatch
from salve_plugin.control.ledger import (
    composed,
    index_of,
    pristine_matrix,
    same_bits,
    take,
    union_of,
)
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.digest import sha256_tensor
from salve_plugin.store.record import Index, ParameterPath, Record, Sha256

Rows = (
    Annotated[
        tuple[Index, ...],
        Meta(min_length=1, max_length=1_000_000, extra_json_schema={"uniqueItems": True}),
    ]
    | None
)
"""Ascending rows of a weight; None means all."""
MemberName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$(?!\n)")]


@dataclass(frozen=True)
class ComposedTensor(Record):
    """One weight before and after all edits.

    Attributes:
        before: without any edit.
        after: hex SHA-256 of all its elements with all edits.
        rows: those that any edit touches.
        rows_after: hex SHA-256 of those rows with all edits.
    """

    before: Fingerprint
    after: Sha256
    rows: Rows
    rows_after: Sha256


@dataclass(frozen=True, order=True)
class MemberOverlap(Record):
    """Two members, by name and in that order, that scale the same rows of a weight."""

    first: MemberName
    second: MemberName
    tensor: ParameterPath
    rows: Rows


@dataclass(frozen=True)
class Composition(Record):
    """What the members of a bundle make of their base together.

    Attributes:
        tensors: by path in the model.
        overlaps: pairs of members whose effects multiply, ordered by names and path.
    """

    tensors: Annotated[Mapping[ParameterPath, ComposedTensor], Meta(min_length=1, max_length=256)]
    overlaps: Annotated[tuple[MemberOverlap, ...], Meta(max_length=1_000_000)]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, edits: Mapping[str, Edit]) -> "Composition":
        """Compute the composition from a model, which is not changed.

        Args:
            model: the edits' base, bare or hooked, with any of them (and others) applied or not.
            edits: by name.

        Raises:
            BaseMismatchError: if the model is not the one that an edit was made for.
            UnsupportedModelError: if two edits reach one weight by different paths.
        """
        paths = sorted({path for edit in edits.values() for path in edit.base.tensors})
        readers = find_readers(bare(model), paths)
        if len(readers) < len(paths):
            tied = sorted(set(paths) - {reader.path for reader in readers})
            raise UnsupportedModelError(
                f"{tied} are other names of weights that are edited too (tied weights), which "
                "edits of one bundle must call by one name; make them from one attached model"
            )
        tensors = {}
        for reader in readers:
            own = [edit for edit in edits.values() if reader.path in edit.base.tensors]
            before = pristine_fingerprint(reader)
            for edit in own:
                if edit.base.tensors[reader.path] != before:
                    raise BaseMismatchError(mismatch(reader.path, edit, before))
            rows = union_of([edit.rows for edit in own])
            whole = pristine_matrix(reader).clone()
            after = composed(take(whole, rows), own)
            whole[index_of(rows)] = after
            tensors[reader.path] = ComposedTensor(
                before, sha256_tensor(whole), rows, sha256_tensor(after)
            )
        return cls(tensors, overlaps_of(edits))


def overlaps_of(edits: Mapping[str, Edit]) -> tuple[MemberOverlap, ...]:
    """Return the pairs of different edits that scale the same rows, by name."""
    names = {edit: name for name, edit in sorted(edits.items())}
    found = []
    for path in sorted({path for edit in names for path in edit.base.tensors}):
        own = [edit for edit in names if path in edit.base.tensors]
        found += [
            MemberOverlap(names[each.first], names[each.second], path, each.rows)
            for each in overlaps_on(path, own)
        ]
    return tuple(sorted(found, key=lambda each: (each.first, each.second, each.tensor)))


def check_composition(members: Mapping[str, EditArtifact], composition: Composition) -> None:
    """Raise unless this is what the members make of their base, as far as they themselves show.

    Which weights and rows are touched, what they were, and the overlaps follow from the edits. The
    rows' content follows where the members carry the pristine rows of all that is touched.

    Raises:
        InputError: says what is wrong.
    """
    edits = {name: member.edit for name, member in members.items()}
    paths = {path for edit in edits.values() for path in edit.base.tensors}
    if set(composition.tensors) != paths:
        raise InputError(
            f"the composition is about {sorted(composition.tensors)}, the members touch "
            f"{sorted(paths)}"
        )
    for path, said in composition.tensors.items():
        _check_tensor(path, said, members)
    overlaps = overlaps_of(edits)
    if composition.overlaps != overlaps:
        raise InputError(
            f"the composition says of overlaps {[each.to_json() for each in composition.overlaps]}"
            f"; the members have {[each.to_json() for each in overlaps]}"
        )


def _check_tensor(path: str, said: ComposedTensor, members: Mapping[str, EditArtifact]) -> None:
    own = {name: member for name, member in members.items() if path in member.edit.base.tensors}
    for name, member in own.items():
        base = member.edit.base.tensors[path]
        if base != said.before:
            raise InputError(
                f"member '{name}' was made for another '{path}' than the bundle: {base}, not "
                f"{said.before}"
            )
    rows = union_of([member.edit.rows for member in own.values()])
    if said.rows != rows or (rows is None and said.after != said.rows_after):
        raise InputError(f"the composition contradicts itself about the edited rows of '{path}'")
    pristine = carried_rows(path, own)
    if pristine is not None:
        found = sha256_tensor(composed(pristine, [member.edit for member in own.values()]))
        if found != said.rows_after:
            raise InputError(
                f"the members make {found} of the edited rows of '{path}', the composition says "
                f"{said.rows_after}"
            )


def carried_rows(path: str, members: Mapping[str, EditArtifact]) -> Tensor | None:
    """Return the pristine rows of all that the members touch of a weight, from what they carry.

    Args:
        path: of the weight.
        members: those that touch it, all made for the same base.

    Returns:
        (rows, width); None if a row is carried by none of them.

    Raises:
        InputError: if two members carry different pristine rows.
    """
    carried = {
        name: (member.edit.rows, member.pristine[path])
        for name, member in members.items()
        if member.pristine is not None
    }
    whole = [len(pristine) for rows, pristine in carried.values() if rows is None]
    touched = union_of([member.edit.rows for member in members.values()])
    if not carried or (touched is None and not whole):
        return None
    # As large as what is carried, not as the shape that a manifest claims.
    place = {row: at for at, row in enumerate(range(whole[0]) if touched is None else touched)}
    some = next(iter(carried.values()))[1]
    room, known = some.new_zeros(len(place), some.shape[1]), torch.zeros(len(place)).bool()
    for name, (rows, pristine) in carried.items():
        at = torch.tensor([place[row] for row in (range(len(place)) if rows is None else rows)])
        again = known[at]
        if not same_bits(room[at][again], pristine[again]):
            raise InputError(
                f"member '{name}' carries other pristine rows of '{path}' than another member"
            )
        room[at], known[at] = pristine, True
    return room if bool(known.all()) else None
