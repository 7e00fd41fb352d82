"""Whether a weight is, bit for bit, what edits make of the weight that they were made for."""

from torch import Tensor

from salve_plugin.control.base import Fingerprint, dtype_name
from salve_plugin.control.edit import Edit
from salve_plugin.control.ledger import Ledger, holds, index_of, take
from salve_plugin.errors import BaseMismatchError, EditStateError, InputError


def check_edited(path: str, weight: Tensor, ledger: Ledger) -> None:
    """Raise unless a weight is its base with the ledger's edits and nothing else.

    Args:
        path: of the weight in the bare model.
        weight: the whole weight, (outputs, width) or (outputs, width, 1, 1).
        ledger: the edits that should be in it, and the rows that they touch without them.

    Raises:
        InputError: if the pristine rows have another shape or dtype than the weight's.
        EditStateError: if the weight's rows are not what the edits make of the pristine ones.
        BaseMismatchError: if the weight with the pristine rows is not the base of every edit.
    """
    matrix = weight.reshape(len(weight), -1)
    for edit in ledger.edits:
        check_rows(path, matrix, edit)
    current, rows = take(matrix, ledger.rows), ledger.pristine
    if rows.shape != current.shape or rows.dtype != current.dtype:
        raise InputError(
            f"pristine rows of '{path}' are {dtype_name(rows)}{list(rows.shape)}, expected "
            f"{dtype_name(current)}{list(current.shape)}"
        )
    if not holds(matrix, ledger):
        names = ", ".join(edit.digest[:12] for edit in ledger.edits)
        raise EditStateError(
            f"the rows of '{path}' are not what edit {names} makes of the pristine rows: "
            "the model was not saved with exactly this, or was changed since"
        )
    whole = matrix.clone()
    whole[index_of(ledger.rows)] = rows.to(whole.device)
    found = Fingerprint.of(whole.reshape(weight.shape))
    for edit in ledger.edits:
        if found != edit.base.tensors[path]:
            raise BaseMismatchError(mismatch(path, edit, found))


def check_rows(path: str, matrix: Tensor, edit: Edit) -> None:
    """Raise BaseMismatchError unless a weight, (outputs, width), has the rows of an edit."""
    if edit.rows is not None and edit.rows[-1] >= len(matrix):
        raise BaseMismatchError(
            f"'{path}' has {len(matrix)} rows and edit {edit.digest[:12]} touches row "
            f"{edit.rows[-1]}; load the base model {dict(edit.base.description)}"
        )


def mismatch(path: str, edit: Edit, found: Fingerprint) -> str:
    """Return the message for a weight that is not the one of the edit's base."""
    return (
        f"'{path}' is not the weight that edit {edit.digest[:12]} was made for: expected "
        f"{edit.base.tensors[path]}, found {found}; load the base model "
        f"{dict(edit.base.description)}, or pass on_base_mismatch='warn' to edit this one anyway"
    )
