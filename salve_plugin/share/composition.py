"""What several edits make of one model together: every parameter before and after all of them.

Of the edits of one parameter factors are multiplied and low-rank terms added, all from the pristine
rows and independent of order, see `salve_plugin.control.ledger`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from salve_plugin.control.applied_edits import Meeting, overlaps_on
from salve_plugin.control.base import Fingerprint
from salve_plugin.control.edit import Edit
from salve_plugin.control.edited import ledgers_over, mismatch, touched_rows
from salve_plugin.control.formula import composed
from salve_plugin.control.ledger import pristine_of
from salve_plugin.control.locks import locked
from salve_plugin.control.rows import index_of, same_bits, take, union_of
from salve_plugin.control.slots import slots_of
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.faces.one_line import one_line
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

    __repr__ = one_line

    before: Fingerprint
    after: Sha256
    rows: Rows
    rows_after: Sha256


@dataclass(frozen=True, order=True)
class MemberOverlap(Record):
    """Two members, by name and in that order, that change the same rows of a parameter.

    Attributes:
        meeting: what that means, see `salve_plugin.control.applied_edits.Meeting`.
    """

    first: MemberName
    second: MemberName
    tensor: ParameterPath
    rows: Rows
    meeting: Meeting


@dataclass(frozen=True)
class Composition(Record):
    """What the members of a bundle make of their base together.

    Attributes:
        tensors: by path in the model.
        overlaps: pairs of members that meet on the same rows, ordered by names and path.
    """

    __repr__ = one_line

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
        with locked(model) as network:
            slots = slots_of(network, paths)
            # By the parameter and not by the path: a tied weight under two names would be counted
            # twice.
            names = {id(slot.parameter): path for path, slot in reversed(slots.items())}
            tied = [path for path, slot in slots.items() if names[id(slot.parameter)] != path]
            if tied:
                raise UnsupportedModelError(
                    f"{tied} are other names of weights that are edited too (tied weights), which "
                    "edits of one bundle must call by one name; make them from one attached model"
                )
            # The model may carry edits, of these and of others: the composition is of the base
            # below them.
            pristine = {path: pristine_of(slot) for path, slot in slots.items()}
            before = {path: Fingerprint.of(tensor) for path, tensor in pristine.items()}
            for edit in edits.values():
                for path, print_ in edit.base.tensors.items():
                    if print_ != before[path]:
                        raise BaseMismatchError(mismatch(path, edit, before[path]))
            tensors = {}
            rows = {path: rows_of(path, edits.values()) for path in paths}
            touched = {path: take(pristine[path], rows[path]) for path in paths}
            for path, ledger in ledgers_over(list(edits.values()), touched).items():
                after, whole = composed(ledger), pristine[path].clone()
                whole[index_of(rows[path])] = after
                tensors[path] = ComposedTensor(
                    before[path], sha256_tensor(whole), rows[path], sha256_tensor(after)
                )
        return cls(tensors, overlaps_of(edits))


def rows_of(path: str, edits: Iterable[Edit]) -> tuple[int, ...] | None:
    """Return the rows of a parameter that any of the edits touches; None means all."""
    return union_of([touched_rows(edit, path) for edit in edits if path in edit.base.tensors])


def overlaps_of(edits: Mapping[str, Edit]) -> tuple[MemberOverlap, ...]:
    """Return the pairs of different edits that change the same rows, by name."""
    names = {edit: name for name, edit in sorted(edits.items())}
    found = []
    for path in sorted({path for edit in names for path in edit.base.tensors}):
        own = [edit for edit in names if path in edit.base.tensors]
        found += [
            MemberOverlap(names[each.first], names[each.second], path, each.rows, each.meeting)
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
    _check_content(members, composition)
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
    rows = rows_of(path, [member.edit for member in own.values()])
    if said.rows != rows or (rows is None and said.after != said.rows_after):
        raise InputError(f"the composition contradicts itself about the edited rows of '{path}'")


def _check_content(members: Mapping[str, EditArtifact], composition: Composition) -> None:
    """Compute what the members make of the rows, where they carry all that is needed for it."""
    pristine = {path: carried_rows(path, members) for path in composition.tensors}
    known = {path: rows for path, rows in pristine.items() if rows is not None}
    # An edit is computed over all its parameters or not at all, and a parameter is compared only
    # where every member that touches it could be computed.
    edits = [each.edit for each in members.values() if set(each.edit.base.tensors) <= set(known)]
    complete = {path: rows for path, rows in known.items() if _all_known(path, edits, members)}
    for path, ledger in ledgers_over(edits, known).items():
        digest = sha256_tensor(composed(ledger)) if path in complete else None
        if digest not in (None, composition.tensors[path].rows_after):
            raise InputError(
                f"the members make {digest} of the edited rows of '{path}', the composition says "
                f"{composition.tensors[path].rows_after}"
            )


def _all_known(path: str, edits: Sequence[Edit], members: Mapping[str, EditArtifact]) -> bool:
    """Tell whether every member that touches a parameter is among the edits."""
    return all(m.edit in edits for m in members.values() if path in m.edit.base.tensors)


def carried_rows(path: str, members: Mapping[str, EditArtifact]) -> Tensor | None:
    """Return the pristine rows of all that the members touch of a parameter, as they carry them.

    Args:
        path: of the parameter.
        members: all made for the same base.

    Returns:
        The rows in the parameter's own layout; None if a row is carried by none of them.

    Raises:
        InputError: if two members carry different pristine rows.
    """
    own = {name: each for name, each in members.items() if path in each.edit.base.tensors}
    carried = {
        name: (touched_rows(member.edit, path), member.pristine[path])
        for name, member in own.items()
        if member.pristine is not None
    }
    whole = [len(pristine) for rows, pristine in carried.values() if rows is None]
    touched = rows_of(path, [member.edit for member in own.values()])
    if not carried or (touched is None and not whole):
        return None
    # As large as what is carried, not as the shape that a manifest claims.
    place = {row: at for at, row in enumerate(range(whole[0]) if touched is None else touched)}
    some = next(iter(carried.values()))[1]
    room = some.new_zeros(len(place), *some.shape[1:])
    known = torch.zeros(len(place), dtype=torch.bool)
    for name, (rows, pristine) in carried.items():
        at = torch.tensor([place[row] for row in (range(len(place)) if rows is None else rows)])
        # Rows that an earlier member brought already must be the same to the bit.
        again = known[at]
        if not same_bits(room[at][again], pristine[again]):
            raise InputError(
                f"member '{name}' carries other pristine rows of '{path}' than another member"
            )
        room[at], known[at] = pristine, True
    return room if bool(known.all()) else None
