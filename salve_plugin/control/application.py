"""Applying edits to a model in place and taking them back bit for bit.

What is applied is kept in a ledger at each touched layer (`salve_plugin.control.ledger`): the
weight is always the pristine rows times the product of the edits' multipliers. So edits may be
applied and reverted in any order, and a weight that somebody else changed meanwhile is noticed.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from salve_plugin.control.base import Fingerprint, Reader, bare, find_readers
from salve_plugin.control.edit import Edit, OnBaseMismatch
from salve_plugin.control.edited import check_edited, check_rows, mismatch
from salve_plugin.control.ledger import (
    ATTRIBUTE,
    Ledger,
    commit,
    holds,
    ledger_of,
    pristine_matrix,
    restore,
    same_bits,
    take,
    union_of,
)  # fmt: skip
from salve_plugin.errors import BaseMismatchError, EditStateError, InputError

# Verified pristine rows, shared by all edits of the same base: they let the next application
# compare instead of hashing again. Alive only while an edit that was verified with them is.
_verified: WeakValueDictionary[tuple[str, tuple[int, ...] | None], Tensor] = WeakValueDictionary()


def apply_(model: nn.Module, edit: Edit, *, on_base_mismatch: OnBaseMismatch = "error") -> None:
    """Apply `edit` to `model` in place.

    Memory addresses, tied weights, optimizers and `requires_grad` stay as they are. Either every
    weight that the edit touches is changed, or none is. The first application of an edit hashes
    the whole weights; later ones of the same edit object compare the touched rows only.

    Args:
        model: the bare model or the hooked one.
        edit: what to apply.
        on_base_mismatch: "warn" applies the edit to weights other than those it was made for, as
            long as the shapes fit.

    Raises:
        EditStateError: if the edit is on the model already, or its weights were changed since
            another edit was applied.
        BaseMismatchError: if the model is not the one that the edit was made for.
        UnsupportedModelError: if a weight cannot be edited.
    """
    apply_all_(model, [edit], on_base_mismatch=on_base_mismatch)


@torch.no_grad()
def apply_all_(
    model: nn.Module, edits: Sequence[Edit], *, on_base_mismatch: OnBaseMismatch = "error"
) -> None:
    """Apply several edits in place, all of them or none; each weight is written once.

    The result does not depend on their order, and is that of applying one after the other.

    Raises:
        SalveError: as `apply_`, for any of the edits; then the model is as it was.
    """
    if on_base_mismatch not in ("error", "warn"):
        raise InputError(f"on_base_mismatch is 'error' or 'warn', not {on_base_mismatch!r}")
    plan: dict[str, tuple[Reader, tuple[Edit, ...], Ledger]] = {}
    for edit in edits:
        for reader in find_readers(bare(model), list(edit.base.tensors)):
            present = ledger_of(reader)
            coming = plan[reader.path][2] if reader.path in plan else present
            if coming is not None and edit in coming.edits:
                raise EditStateError(
                    f"edit {edit.digest[:12]} is already applied to '{reader.path}'; revert it "
                    "first, or give another edit a different strength"
                )
            if present is not None and present is coming:
                check_unchanged(reader, present)
            pristine = _verify(reader, present, edit, on_base_mismatch)
            applied = () if present is None else present.edits
            plan[reader.path] = (reader, applied, _extended(reader, coming, edit, pristine))
    commit(list(plan.values()))


def revert_(
    model: nn.Module, edit: Edit, *, on_changed: Literal["error", "discard"] = "error"
) -> None:
    """Take `edit` back: bit for bit, in any order of reverts, atomically over its weights.

    Args:
        model: the bare model or the hooked one.
        edit: what to revert (an equal edit will do).
        on_changed: "discard" reverts even if the edited rows were changed since, e.g. by training;
            those changes are lost.

    Raises:
        EditStateError: if the edit is not on the model, or the edited rows were changed since.
    """
    revert_all_(model, [edit], on_changed=on_changed)


@torch.no_grad()
def revert_all_(
    model: nn.Module,
    edits: Sequence[Edit],
    *,
    on_changed: Literal["error", "discard"] = "error",
) -> None:
    """Take several edits back, all of them or none; see `revert_`.

    Raises:
        EditStateError: as `revert_`, for any of the edits; then the model is as it was.
    """
    plan: dict[str, tuple[Reader, Ledger]] = {}
    for edit in edits:
        for reader in find_readers(bare(model), list(edit.base.tensors)):
            ledger = ledger_of(reader)
            if ledger is None or edit not in ledger.edits:
                raise EditStateError(
                    f"edit {edit.digest[:12]} is not applied to '{reader.path}'; status(model) "
                    "lists what is. A model that was saved in edited form has no ledger: use "
                    "restore_rows_ with the pristine rows"
                )
            plan[reader.path] = (reader, ledger)
    planned = list(plan.values())
    nothing_left = all(set(ledger.edits) <= set(edits) for _, ledger in planned)
    if on_changed == "error" and nothing_left:
        changed = restore(planned)
        if changed is not None:
            raise EditStateError(_changed(changed))
        return
    if on_changed == "error":
        for reader, ledger in planned:
            check_unchanged(reader, ledger)
    commit([(reader, ledger.edits, ledger.without(*edits)) for reader, ledger in planned])


def forget_(model: nn.Module) -> None:
    """Accept the weights as they are: drop the record of all applied edits, change nothing else.

    For a model that was trained on after an edit. The edits can no longer be reverted.
    """
    for module in bare(model).modules():
        module.__dict__.pop(ATTRIBUTE, None)


@torch.no_grad()
def pristine_rows(model: nn.Module, edit: Edit) -> dict[str, Tensor]:
    """Return copies of the rows that `edit` touches, without any edit, by weight path.

    Enough, with the edit, to undo it in a model that was saved in edited form.
    """
    readers = find_readers(bare(model), list(edit.base.tensors))
    for reader in readers:
        check_rows(reader.path, reader.matrix, edit)
    return {reader.path: take(pristine_matrix(reader), edit.rows).clone() for reader in readers}


def restore_rows_(model: nn.Module, edit: Edit, pristine: Mapping[str, Tensor]) -> None:
    """Undo `edit` in a model that was saved in edited form and so carries no ledger.

    Nothing is written unless the current rows are exactly what the edit makes of `pristine`, and
    the result is exactly the edit's base.

    Args:
        model: the bare model or the hooked one.
        edit: the only edit in its weights.
        pristine: by weight path, the rows from `pristine_rows`, (rows, width).

    Raises:
        InputError: if a weight is missing or unknown, or has another shape or dtype.
        EditStateError: if the model has a ledger (use `revert_`), or its rows are not the edit's.
        BaseMismatchError: if putting the rows back would not give the edit's base.
    """
    restore_all_(model, [edit], pristine)


@torch.no_grad()
def restore_all_(model: nn.Module, edits: Sequence[Edit], pristine: Mapping[str, Tensor]) -> None:
    """Undo several edits in a model that was saved with all of them; see `restore_rows_`.

    Args:
        model: the bare model or the hooked one.
        edits: all that are in its weights.
        pristine: by weight path, the rows that any of the edits touches, (rows, width).

    Raises:
        SalveError: as `restore_rows_`; then the model is as it was.
    """
    touched = sorted({path for edit in edits for path in edit.base.tensors})
    if sorted(pristine) != touched:
        raise InputError(
            f"pristine rows are given for {sorted(pristine)}, but what is to be undone touches "
            f"{touched}"
        )
    plan = []
    for reader in find_readers(bare(model), touched):
        own = tuple(edit for edit in edits if reader.path in edit.base.tensors)
        ledger = Ledger(own, union_of([edit.rows for edit in own]), pristine[reader.path])
        if ledger_of(reader) is not None:
            raise EditStateError(
                f"'{reader.path}' has a ledger of its edits: use revert_ of the edit or the bundle"
            )
        check_edited(reader.path, reader.parameter.detach(), ledger)
        plan.append((reader, own, ledger.without(*own)))
    commit(plan)


def pristine_fingerprint(reader: Reader) -> Fingerprint:
    """Return the fingerprint of a weight without the edits on it."""
    if ledger_of(reader) is None:
        return Fingerprint.of(reader.parameter)
    shape = reader.parameter.shape
    return Fingerprint.of(pristine_matrix(reader).reshape(shape))


def _verify(
    reader: Reader, ledger: Ledger | None, edit: Edit, on_base_mismatch: OnBaseMismatch
) -> Tensor:
    """Return the pristine rows of `edit` after checking that the weight is its base."""
    known = edit._verified.get(reader.path)
    if known is not None and ledger is None and same_bits(known, take(reader.matrix, edit.rows)):
        return known
    check_rows(reader.path, reader.matrix, edit)
    rows = take(pristine_matrix(reader), edit.rows)
    expected, found = edit.base.tensors[reader.path], pristine_fingerprint(reader)
    if found == expected:
        key = (found.sha256, edit.rows)
        shared = _verified.get(key)
        if shared is None or not same_bits(shared, rows):
            shared = _verified[key] = rows.clone()
        edit._verified[reader.path] = shared
        return shared
    if on_base_mismatch == "error" or rows.shape[1] != edit.site.width:
        raise BaseMismatchError(mismatch(reader.path, edit, found))
    warnings.warn(mismatch(reader.path, edit, found), stacklevel=5)
    return rows.clone()


def _extended(reader: Reader, ledger: Ledger | None, edit: Edit, rows: Tensor) -> Ledger:
    """Return the ledger with one more edit, whose pristine rows are given."""
    if ledger is None:
        return Ledger((edit,), edit.rows, rows)
    edits = (*ledger.edits, edit)
    touched = union_of([ledger.rows, edit.rows])
    if touched == ledger.rows:
        return Ledger(edits, touched, ledger.pristine)
    return Ledger(edits, touched, take(pristine_matrix(reader), touched).clone())


def check_unchanged(reader: Reader, ledger: Ledger) -> None:
    """Raise EditStateError unless the weight is still what the ledger's edits made of it."""
    if not holds(reader.matrix, ledger):
        raise EditStateError(_changed(reader))


def _changed(reader: Reader) -> str:
    return (
        f"the edited rows of '{reader.path}' were changed since an edit was applied (by training, "
        "load_state_dict or a cast). Nothing was written. To keep the current weights for good "
        "call forget_(model); to throw the changes away, edit.revert_(model, on_changed='discard')"
    )
