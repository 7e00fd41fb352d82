"""Applying edits to a model in place and taking them back bit for bit.

What is applied is kept in a ledger at each touched parameter (`salve_plugin.control.ledger`): the
parameter is always one formula of its pristine rows. So edits may be applied and reverted in any
order, and a parameter that somebody else changed meanwhile is noticed.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args
from weakref import WeakValueDictionary

from torch import Tensor, nn

from salve_plugin.control.base import Fingerprint
from salve_plugin.control.edited import (
    check_shape,
    entries_of,
    fold_matches,
    mismatch,
)  # fmt: skip
from salve_plugin.control.formula import Ledger, fits, holds
from salve_plugin.control.ledger import ATTRIBUTE, Planned, commit, ledger_of, pristine_of
from salve_plugin.control.locks import locked
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import same_bits, take, union_of
from salve_plugin.control.slots import Slot, modules_of, slots_of
from salve_plugin.errors import (
    BaseMismatchError,
    EditStateError,
    InputError,
)
from salve_plugin.network import OnBaseMismatch, check_choice

OnChanged = Literal["error", "discard"]

# Verified pristine parameters, shared by all edits of the same base: they let the next application
# compare instead of hashing again. Alive only while an edit that was verified with them is.
_verified: WeakValueDictionary[str, Tensor] = WeakValueDictionary()


def apply_(model: nn.Module, edit: Recipe, *, on_base_mismatch: OnBaseMismatch = "error") -> None:
    """Apply `edit` to `model` in place.

    Memory addresses, tied weights, optimizers and `requires_grad` stay as they are. Either every
    parameter that the edit touches is changed, or none is. Each is first compared, as a whole, with
    the one that the edit was made for: by its hash the first time, bit by bit later on.

    Args:
        model: the bare model or the hooked one.
        edit: what to apply.
        on_base_mismatch: "warn" applies the edit to parameters other than those it was made for, as
            long as the shapes are the same.

    Raises:
        EditStateError: if the edit is on the model already, or its weights were changed since
            another edit was applied.
        BaseMismatchError: if the model is not the one that the edit was made for.
        UnsupportedModelError: if a weight cannot be edited.
    """
    apply_all_(model, [edit], on_base_mismatch=on_base_mismatch)


def apply_all_(
    model: nn.Module, edits: Sequence[Recipe], *, on_base_mismatch: OnBaseMismatch = "error"
) -> None:
    """Apply several edits in place, all of them or none; each parameter is written once.

    The result does not depend on their order, and is that of applying one after the other.

    Raises:
        SalveError: as `apply_`, for any of the edits; then the model is as it was.
    """
    check_choice(on_base_mismatch)
    _check_edits(edits)
    with locked(model) as network:
        slots = slots_of(network, {path for edit in edits for path in edit.base.tensors})
        # By the parameter's identity: tied weights have several paths, and are written once.
        plan: dict[int, Planned] = {}
        for edit in edits:
            own = {path: _with_room(slots[path], plan, edit) for path in edit.base.tensors}
            _check_fold(network, edit, on_base_mismatch)
            pristine = {}
            # No comprehension: before Python 3.12 it is a frame of its own, and the warning in
            # there points at the caller.
            for path, present in own.items():
                pristine[path] = _verify(slots[path], present, edit, on_base_mismatch)
            for path, alone in _made_of(edit, pristine):
                slot, present = slots[path], own[path]
                planned = plan.get(id(slot.parameter))
                coming = present if planned is None else planned.coming
                both = alone if coming is None else _extended(coming, alone, pristine[path])
                plan[id(slot.parameter)] = Planned(slot, present, both)
        commit(list(plan.values()))


def _check_edits(edits: object) -> None:
    if not isinstance(edits, Sequence) or not all(isinstance(edit, Recipe) for edit in edits):
        raise InputError(f"a list of edits was expected; got {edits!r:.200}")


def _with_room(slot: Slot, plan: Mapping[int, Planned], edit: Recipe) -> Ledger | None:
    """Return the ledger that a parameter has, after checking that there is room for the edit.

    Raises:
        EditStateError: if the edit is on it already, or it is not what its ledger says.
    """
    planned = plan.get(id(slot.parameter))
    present = ledger_of(slot) if planned is None else planned.present
    coming = present if planned is None else planned.coming
    # First: where other weights were loaded meanwhile, no edit is on them, whatever is noted.
    if planned is None and present is not None:
        check_unchanged(slot, present)
    if coming is not None and edit in coming.edits:
        raise EditStateError(
            f"edit {edit.digest[:12]} is already applied to '{slot.path}'; revert it first, or "
            "give another edit a different strength"
        )
    return present


def _check_fold(model: nn.Module, edit: Recipe, on_base_mismatch: OnBaseMismatch) -> None:
    if fold_matches(model, edit):
        return
    message = (
        f"what lies between '{edit.targets[0].weight}' and site '{edit.site.name}' "
        f"({list(edit.targets[0].affine)}) is not what edit {edit.digest[:12]} was made for; load "
        f"the base model {dict(edit.base.description)}"
    )
    if on_base_mismatch == "error":
        raise BaseMismatchError(message)
    # The warning names the line that called `Edit.apply_`.
    warnings.warn(message, stacklevel=5)


def _made_of(edit: Recipe, pristine: Mapping[str, Tensor]) -> list[tuple[str, Ledger]]:
    """Return what the edit alone makes of parameters; computed once for the same pristine ones."""
    key = tuple(id(tensor) for tensor in pristine.values())
    made: tuple[Any, list[tuple[str, Ledger]]] | None = edit._made.get(key)
    if made is None:
        # With the tensors themselves, so that no other tensor gets one of their ids.
        entries = entries_of(edit, lambda path, rows: take(pristine[path], rows))
        ledgers = [
            (path, Ledger((entry,), entry.rows, take(pristine[path], entry.rows)))
            for path, entry in entries
        ]
        made = (tuple(pristine.values()), ledgers)
        # Of another model's thread that uses the same edit nothing is lost but a little time.
        edit._made.clear()
        edit._made[key] = made
    return made[1]


def _extended(coming: Ledger, alone: Ledger, pristine: Tensor) -> Ledger:
    """Return a ledger with the one entry of another, given the whole of their parameter."""
    rows = union_of([coming.rows, alone.rows])
    kept = coming.pristine if rows == coming.rows else take(pristine, rows).clone()
    return Ledger((*coming.entries, *alone.entries), rows, kept)


def revert_(model: nn.Module, edit: Recipe, *, on_changed: OnChanged = "error") -> None:
    """Take `edit` back: bit for bit, in any order of reverts, atomically over its parameters.

    Args:
        model: the bare model or the hooked one.
        edit: what to revert (an equal edit will do).
        on_changed: "discard" reverts even if the edited rows were changed since, e.g. by training;
            those changes are lost.

    Raises:
        EditStateError: if the edit is not on the model, or the edited rows were changed since.
    """
    revert_all_(model, [edit], on_changed=on_changed)


def revert_all_(
    model: nn.Module, edits: Sequence[Recipe], *, on_changed: OnChanged = "error"
) -> None:
    """Take several edits back, all of them or none; see `revert_`.

    Raises:
        EditStateError: as `revert_`, for any of the edits; then the model is as it was.
    """
    if on_changed not in get_args(OnChanged):  # not checked, a slip would discard changes
        raise InputError(f"on_changed {on_changed!r} is neither 'error' nor 'discard'")
    _check_edits(edits)
    with locked(model) as network:
        modules = modules_of(network)
        paths = {path for edit in edits for path in edit.base.tensors}
        slots = slots_of(network, paths, modules)
        # By identity: every path of a tied weight leads to its one ledger.
        plan: dict[int, tuple[Slot, Ledger]] = {}
        for edit in edits:
            for path in edit.base.tensors:
                ledger = ledger_of(slots[path])
                if ledger is None or edit not in ledger.edits:
                    raise EditStateError(
                        f"edit {edit.digest[:12]} is not applied to '{path}'; status(model) lists "
                        "what is. A model that was saved in edited form has no ledger: revert it "
                        "with its EditArtifact, which carries the pristine rows"
                    )
                plan[id(slots[path].parameter)] = (slots[path], ledger)
        plan |= _elsewhere(network, modules, edits, plan)
        # All are compared before any is written: comparing and writing in one pass saves reading a
        # weight that is larger than the cache once more, and is no faster for one that is not.
        for slot, ledger in plan.values():
            # Discarding changes needs rows to write to: a parameter of another shape is refused all
            # the same.
            if on_changed == "error" or not fits(slot.parameter, ledger):
                check_unchanged(slot, ledger)
        commit([Planned(s, ledger, ledger.without(*edits)) for s, ledger in plan.values()])


def _elsewhere(
    model: nn.Module,
    modules: Sequence[nn.Module],
    edits: Sequence[Recipe],
    plan: Mapping[int, tuple[Slot, Ledger]],
) -> dict[int, tuple[Slot, Ledger]]:
    """Return further parameters that carry the edits.

    A weight that was untied after the edit, or a copy of an edited layer, is a parameter of its
    own that no path of the edit leads to.
    """

    def others(module: nn.Module) -> list[str]:
        parameters = [(name, module._parameters.get(name)) for name in module.__dict__[ATTRIBUTE]]
        return [name for name, own in parameters if own is not None and id(own) not in plan]

    # Names are put together only where there is one to name.
    if not any(ATTRIBUTE in module.__dict__ and others(module) for module in modules):
        return {}
    paths = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if ATTRIBUTE in module.__dict__
        for name in others(module)
    ]
    further: dict[int, tuple[Slot, Ledger]] = {}
    for slot in slots_of(model, paths, modules).values():
        ledger = ledger_of(slot)
        if ledger is not None and any(edit in ledger.edits for edit in edits):
            further[id(slot.parameter)] = (slot, ledger)
    return further


def forget_(model: nn.Module) -> None:
    """Accept the weights as they are: drop the record of all applied edits, change nothing else.

    For a model that was trained on after an edit. The edits can no longer be reverted.
    """
    with locked(model) as network:
        for module in network.modules():
            module.__dict__.pop(ATTRIBUTE, None)


def _verify(
    slot: Slot, present: Ledger | None, edit: Recipe, on_base_mismatch: OnBaseMismatch
) -> Tensor:
    """Return the whole pristine parameter after checking that it is the edit's base."""
    whole = slot.parameter.detach() if present is None else pristine_of(slot)
    known = edit._verified.get(slot.path)
    if known is not None and same_bits(known, whole):
        return known
    check_shape(slot.path, whole, edit)
    expected, fingerprint = edit.base.tensors[slot.path], Fingerprint.of(whole)
    if fingerprint == expected:
        shared = _verified.get(fingerprint.sha256)
        if shared is None or not same_bits(shared, whole):
            # A copy: `whole` may be the parameter itself, which is about to change.
            shared = _verified[fingerprint.sha256] = whole.clone()
        edit._verified[slot.path] = shared
        return shared
    if on_base_mismatch == "error":
        raise BaseMismatchError(mismatch(slot.path, edit, fingerprint))
    warnings.warn(mismatch(slot.path, edit, fingerprint), stacklevel=5)
    return whole.clone()


def check_unchanged(slot: Slot, ledger: Ledger) -> None:
    """Raise EditStateError unless the parameter is still what the ledger's edits made of it."""
    if not holds(slot.parameter, ledger):
        raise EditStateError(
            f"the edited rows of '{slot.path}' were changed since an edit was applied (by "
            "training, load_state_dict or a cast). Nothing was written. To keep the current "
            "weights for good call forget_(model); to throw the changes away, "
            "edit.revert_(model, on_changed='discard')"
        )
