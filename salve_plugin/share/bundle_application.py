"""Applying the members of a bundle, taking them back, all of them or none, and finding them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from salve_plugin.control.application import apply_all_, check_unchanged, revert_all_
from salve_plugin.control.applied_edits import status
from salve_plugin.control.base import Fingerprint
from salve_plugin.control.edit import Edit
from salve_plugin.control.ledger import ledger_of
from salve_plugin.control.locks import locked
from salve_plugin.control.saved import restore_all_
from salve_plugin.control.slots import slots_of
from salve_plugin.errors import EditStateError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.audit import Audit, audit
from salve_plugin.share.composition import Composition, carried_rows
from salve_plugin.share.model_state import StateSource


def apply_members_(model: nn.Module, edits: Sequence[Edit], composition: Composition) -> list[Edit]:
    """Apply the members that are missing and return their edits; see `EditBundle.apply_`."""
    with locked(model) as network:
        present = status(network).applied
        foreign = [
            entry.edit.digest[:12]
            for entry in present
            if entry.edit not in edits and set(entry.tensors) & set(composition.tensors)
        ]
        if foreign:
            raise EditStateError(
                f"edits {foreign} that are not in the bundle are on weights that it touches, so "
                "the result could not be the recorded one; revert them first, or apply the "
                "members one by one"
            )
        on = {entry.edit for entry in present}
        missing = [edit for edit in edits if edit not in on]
        if not missing:
            names = [edit.digest[:12] for edit in edits]
            raise EditStateError(
                f"all members {names} are already applied; revert the bundle first"
            )
        # Before anything is written: what was changed under members that are on already could not
        # become what is recorded.
        for slot in slots_of(network, composition.tensors).values():
            ledger = ledger_of(slot)
            if ledger is not None:
                check_unchanged(slot, ledger)
        apply_all_(network, missing)
        try:
            _check_result(network, composition)
        # An interrupt, too, has to leave the model as it was.
        except BaseException:
            revert_all_(network, missing)
            raise
        return missing


def _check_result(model: nn.Module, composition: Composition) -> None:
    for path, slot in slots_of(model, composition.tensors).items():
        said = composition.tensors[path]
        print_ = Fingerprint.of(slot.parameter)
        # Shape and type have to be the base's still.
        if print_ != replace(said.before, sha256=said.after):
            raise EditStateError(
                f"the members make {print_} of '{path}', the bundle records the sha256 "
                f"{said.after}; nothing was changed. The record is wrong: make the bundle anew "
                "with EditBundle.of(model, bundle.members)"
            )


def revert_members_(
    model: nn.Module, members: Mapping[str, EditArtifact], composition: Composition
) -> None:
    """Undo the members that are on a model, or that it was saved with; see `EditBundle.revert_`."""
    edits = [member.edit for member in members.values()]
    on = {entry.edit for entry in status(model).applied}
    present = [edit for edit in edits if edit in on]
    if present:
        revert_all_(model, present)
        return
    pristine = carried_rows(members)
    lacking = sorted(composition.tensors.keys() - pristine.keys())
    if lacking:
        raise EditStateError(
            "the model does not know of the members (was it loaded in edited form?) and they do "
            f"not carry all pristine rows of '{lacking[0]}'; make them with "
            "EditArtifact.of(model, edit), or load the base model's weights again"
        )
    restore_all_(model, edits, pristine)


def audit_members(
    members: Mapping[str, EditArtifact], base: StateSource | None, edited: StateSource
) -> Audit:
    """Say whether a model is the base with exactly all members; see `EditBundle.audit`."""
    # With a base the carried rows are not needed, nor put together.
    pristine = carried_rows(members) if base is None else None
    return audit([member.edit for member in members.values()], pristine, base, edited)
