"""What several edits make of one model together: every parameter before and after all of them.

Of the edits of one parameter factors are multiplied and low-rank terms added, all from the pristine
rows and independent of order, see `salve_plugin.control.ledger`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from salve_plugin.control.applied_edits import Meeting, overlaps_on
from salve_plugin.control.base import Fingerprint
from salve_plugin.control.edit import Edit
from salve_plugin.control.edit_fields import RowNumbers
from salve_plugin.control.edited import covered_rows, ledgers_over, mismatch, touched_rows
from salve_plugin.control.formula import composed
from salve_plugin.control.ledger import pristine_of
from salve_plugin.control.locks import locked
from salve_plugin.control.rows import index_of, same_bits, take
from salve_plugin.control.slots import slots_of
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.faces.one_line import one_line
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.digest import sha256_tensor
from salve_plugin.store.record import PLAIN_NAME, ParameterPath, Record, Sha256

MemberName = Annotated[str, Meta(pattern=rf"^{PLAIN_NAME}$(?!\n)")]


@dataclass(frozen=True)
class ComposedTensor(Record):
    """One weight before and after all edits.

    Attributes:
        before: without any edit.
        after: hex SHA-256 of all its elements with all edits.
        rows: those that any edit touches; None means all.
        rows_after: hex SHA-256 of those rows with all edits.
    """

    __repr__ = one_line

    before: Fingerprint
    after: Sha256
    rows: RowNumbers | None
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
    rows: RowNumbers | None
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
            # From the rows that are touched alone, as whoever has only those would compute them:
            # then the whole parameter, which is what the model will hold.
            tensors = {}
            rows = {path: covered_rows(edits.values(), path) for path in paths}
            touched = {path: take(pristine[path], rows[path]) for path in paths}
            for path, ledger in ledgers_over(list(edits.values()), touched).items():
                after, whole = composed(ledger), pristine[path].clone()
                whole[index_of(rows[path])] = after
                tensors[path] = ComposedTensor(
                    before[path], sha256_tensor(whole), rows[path], sha256_tensor(after)
                )
        return cls(tensors, overlaps_of(edits))


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
    rows = covered_rows([member.edit for member in own.values()], path)
    if said.rows != rows or (rows is None and said.after != said.rows_after):
        raise InputError(f"the composition contradicts itself about the edited rows of '{path}'")


def _check_content(members: Mapping[str, EditArtifact], composition: Composition) -> None:
    """Compute what the members make of the rows, where they carry all that is needed for it."""
    known = carried_rows(members)
    # An edit is computed over all its parameters or not at all, and a parameter is compared only
    # where every member that touches it could be computed.
    edits = [each.edit for each in members.values() if set(each.edit.base.tensors) <= set(known)]
    for path, ledger in ledgers_over(edits, known).items():
        if not all(m.edit in edits for m in members.values() if path in m.edit.base.tensors):
            continue
        digest = sha256_tensor(composed(ledger))
        if digest != composition.tensors[path].rows_after:
            raise InputError(
                f"the members make {digest} of the edited rows of '{path}', the composition says "
                f"{composition.tensors[path].rows_after}"
            )


def carried_rows(members: Mapping[str, EditArtifact]) -> dict[str, Tensor]:
    """Return the pristine rows of all that members of one base touch, as they carry them.

    Returns:
        By path, in the parameter's own layout, of the parameters whose rows are all carried.

    Raises:
        InputError: if two members carry different pristine rows.
    """
    paths = sorted({path for each in members.values() for path in each.edit.base.tensors})
    rows = {path: _carried(path, members) for path in paths}
    return {path: tensor for path, tensor in rows.items() if tensor is not None}


def _carried(path: str, members: Mapping[str, EditArtifact]) -> Tensor | None:
    """Return the rows of one parameter; None if a row is carried by no member."""
    own = {name: each for name, each in members.items() if path in each.edit.base.tensors}
    carried = {
        name: (touched_rows(member.edit, path), member.pristine[path])
        for name, member in own.items()
        if member.pristine is not None
    }
    whole = [len(pristine) for rows, pristine in carried.values() if rows is None]
    touched = covered_rows([member.edit for member in own.values()], path)
    if not carried or (touched is None and not whole):
        return None
    # As large as what is carried, not as the shape that a manifest claims.
    place = {row: at for at, row in enumerate(range(whole[0]) if touched is None else touched)}
    some = next(iter(carried.values()))[1]
    room = some.new_zeros(len(place), *some.shape[1:])
    # Which rows some member has brought; at the end it must be all.
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
