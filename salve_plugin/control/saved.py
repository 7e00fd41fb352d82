"""Edits in models that were saved with them and know nothing of it: recognized, and taken out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from salve_plugin.control.edited import check_edited, check_shape, ledgers_over, touched_rows
from salve_plugin.control.formula import Ledger
from salve_plugin.control.ledger import Planned, commit, ledger_of, pristine_of
from salve_plugin.control.locks import locked
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import take
from salve_plugin.control.slots import Slot, slots_of
from salve_plugin.errors import EditStateError, InputError, SalveError


@torch.no_grad()
def pristine_rows(model: nn.Module, edit: Recipe) -> dict[str, Tensor]:
    """Return copies of the rows that `edit` touches, without any edit, by parameter path.

    Enough, with the edit, to undo it in a model that was saved in edited form.
    """
    with locked(model) as network:
        slots = slots_of(network, edit.base.tensors)
        for path, slot in slots.items():
            check_shape(path, slot.parameter, edit)
        return {
            path: take(pristine_of(slot), touched_rows(edit, path)).clone()
            for path, slot in slots.items()
        }


def restore_rows_(model: nn.Module, edit: Recipe, pristine: Mapping[str, Tensor]) -> None:
    """Undo `edit` in a model that was saved in edited form and so carries no ledger.

    Nothing is written unless the current rows are exactly what the edit makes of `pristine`, and
    the parameters become exactly those of the edit's base; others are not compared, see `match`.

    Args:
        model: the bare model or the hooked one.
        edit: the only edit in its parameters.
        pristine: by parameter path, the rows from `pristine_rows`.

    Raises:
        InputError: if a parameter is missing or unknown, or has another shape or dtype.
        EditStateError: if the model has a ledger (use `revert_`), or its rows are not the edit's.
        BaseMismatchError: if putting the rows back would not give the base's parameters.
    """
    restore_all_(model, [edit], pristine)


@torch.no_grad()
def restore_all_(model: nn.Module, edits: Sequence[Recipe], pristine: Mapping[str, Tensor]) -> None:
    """Undo several edits in a model that was saved with all of them; see `restore_rows_`.

    Args:
        model: the bare model or the hooked one.
        edits: all that are in its parameters.
        pristine: by parameter path, the rows that any of the edits touches.

    Raises:
        SalveError: as `restore_rows_`; then the model is as it was.
    """
    with locked(model) as network:
        # The ledger that the model would have, had it been edited here: taking the edits out is
        # then a revert, with its way back on any error.
        commit(
            [
                Planned(slot, ledger, ledger.without(*edits))
                for slot, ledger in saved_ledgers(network, edits, pristine)
            ]
        )


def saved_ledgers(
    model: nn.Module, edits: Sequence[Recipe], pristine: Mapping[str, Tensor]
) -> list[tuple[Slot, Ledger]]:
    """Return the ledgers of a model that was saved with all of the edits, everything compared.

    Raises:
        SalveError: as `restore_rows_`.
    """
    touched = sorted({path for edit in edits for path in edit.base.tensors})
    if sorted(pristine) != touched:
        raise InputError(
            f"pristine rows are given for {sorted(pristine)}, but what is to be undone touches "
            f"{touched}"
        )
    slots = slots_of(model, touched)
    if any(ledger_of(slot) is not None for slot in slots.values()):
        held = [path for path, slot in slots.items() if ledger_of(slot) is not None]
        raise EditStateError(
            f"{held} has a ledger of its edits: use revert_ of the edit or the bundle"
        )
    for edit in edits:
        for path in edit.base.tensors:
            check_shape(path, slots[path].parameter, edit)
    # What the model would remember, had the edits been made in this process.
    ledgers = ledgers_over(edits, pristine)
    for path, slot in slots.items():
        check_edited(path, slot.parameter.detach(), ledgers[path])
    return [(slots[path], ledgers[path]) for path in touched]


def is_saved_with(model: nn.Module, edit: Recipe, pristine: Mapping[str, Tensor]) -> bool:
    """Tell whether a model that knows of no edit holds exactly this one in its parameters."""
    with locked(model) as network:
        try:
            saved_ledgers(network, [edit], pristine)
        except SalveError:
            return False
    return True
