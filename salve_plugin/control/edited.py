"""Whether parameters are, bit for bit, what edits make of those that they were made for."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from salve_plugin.control.base import Fingerprint, dtype_name
from salve_plugin.control.folds import fold_of
from salve_plugin.control.formula import Entry, Ledger, holds
from salve_plugin.control.operators import Fold
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import Rows, index_of, take, union_of
from salve_plugin.errors import BaseMismatchError, EditStateError, InputError

Pristine = Callable[[str, Rows], Tensor]
"""Returns rows of a parameter without any edit, by its path."""


@torch.no_grad()
def entries_of(edit: Recipe, pristine: Pristine) -> list[tuple[str, Entry]]:
    """Return what an edit makes of every parameter that it touches, by path."""
    entries: list[tuple[str, Entry]] = []
    seen: set[tuple[str, Rows]] = set()
    for target in edit.targets:
        rows = target.rows(edit.rows)
        # On the CPU, where the sums that parts are made of have a fixed order
        # (`operators.arithmetic`).
        weight = pristine(target.weight, rows).cpu()
        fold = edit.fold or Fold.none(edit.site.width)
        operator, reads = edit.operator, target.role == "reader"
        if (target.weight, rows) not in seen:  # a tied weight has several targets, for its biases
            part = operator.reader_weight(weight) if reads else operator.writer_weight(weight, fold)
            entries.append((target.weight, Entry(edit, rows, part)))
            seen.add((target.weight, rows))
        if target.bias is not None:
            if reads:
                part = operator.reader_bias(weight)
            else:
                part = operator.writer_bias(pristine(target.bias, rows).cpu(), fold)
            entries.append((target.bias, Entry(edit, rows, part)))
    return entries


def touched_rows(edit: Recipe, path: str) -> Rows:
    """Return the rows of a parameter that an edit touches."""
    own = [target.rows(edit.rows) for target in edit.targets if path in target.paths]
    return union_of(own)


def covered_rows(edits: Iterable[Recipe], path: str) -> Rows:
    """Return the rows of a parameter that any of the edits touches."""
    return union_of([touched_rows(edit, path) for edit in edits if path in edit.base.tensors])


def ledgers_over(edits: Sequence[Recipe], pristine: Mapping[str, Tensor]) -> dict[str, Ledger]:
    """Return the ledgers of parameters of which only the touched rows are known.

    Args:
        edits: all that are on the parameters.
        pristine: by path, the rows that any of the edits touches, ascending.

    Raises:
        InputError: if rows are not as many as the edits touch.
    """
    covered = {path: covered_rows(edits, path) for path in pristine}
    for path, rows in covered.items():
        shape = next(e.base.tensors[path].shape for e in edits if path in e.base.tensors)
        expected = (shape[0] if rows is None else len(rows), *shape[1:])
        if tuple(pristine[path].shape) != expected:
            raise InputError(
                f"pristine rows of '{path}' have the shape {list(pristine[path].shape)}, expected "
                f"{list(expected)}"
            )

    def rows_of(path: str, rows: Rows) -> Tensor:
        known = covered[path]
        if known is None or rows == known:
            return take(pristine[path], None if rows == known else rows)
        assert rows is not None
        place = {row: at for at, row in enumerate(known)}
        return take(pristine[path], tuple(place[row] for row in rows))

    entries: dict[str, list[Entry]] = {path: [] for path in pristine}
    for edit in edits:
        for path, entry in entries_of(edit, rows_of):
            entries[path].append(entry)
    return {
        path: Ledger(tuple(own), covered[path], pristine[path]) for path, own in entries.items()
    }


def check_edited(path: str, tensor: Tensor, ledger: Ledger) -> None:
    """Raise unless a parameter is its base with the ledger's edits and nothing else.

    Args:
        path: of the parameter in the bare model.
        tensor: the whole parameter.
        ledger: the edits that should be in it, and the rows that they touch without them.

    Raises:
        InputError: if the pristine rows have another dtype than the parameter's.
        EditStateError: if its rows are not what the edits make of the pristine ones.
        BaseMismatchError: if it is not the base of every edit with the pristine rows in place.
    """
    for edit in ledger.edits:
        check_shape(path, tensor, edit)
    current, rows = take(tensor, ledger.rows), ledger.pristine
    if rows.shape != current.shape or rows.dtype != current.dtype:
        raise InputError(
            f"pristine rows of '{path}' are {dtype_name(rows)}{list(rows.shape)}, expected "
            f"{dtype_name(current)}{list(current.shape)}"
        )
    if not holds(tensor, ledger):
        names = ", ".join(edit.digest[:12] for edit in ledger.edits)
        raise EditStateError(
            f"the rows of '{path}' are not what edit {names} makes of the pristine rows: "
            "the model was not saved with exactly this, or was changed since; give the weights as "
            "they were saved with it"
        )
    # The rows were shown to follow from the pristine ones; that those are the base's, and that no
    # other row has changed, only the digest over the whole can tell.
    whole = tensor.detach().clone()
    whole[index_of(ledger.rows)] = rows.to(whole.device)
    fingerprint = Fingerprint.of(whole)
    for edit in ledger.edits:
        if fingerprint != edit.base.tensors[path]:
            raise BaseMismatchError(mismatch(path, edit, fingerprint))


def check_shape(path: str, tensor: Tensor, edit: Recipe) -> None:
    """Raise BaseMismatchError unless a parameter has the shape of the edit's base."""
    expected = edit.base.tensors[path].shape
    if tuple(tensor.shape) != expected:
        raise BaseMismatchError(
            f"'{path}' has the shape {list(tensor.shape)}, edit {edit.digest[:12]} was made for "
            f"{list(expected)}; load the base model {dict(edit.base.description)}"
        )


def fold_matches(model: nn.Module, edit: Recipe) -> bool:
    """Tell whether what lies behind the writer is, bit for bit, what the edit was made for."""
    if edit.fold is None:
        return True
    (target,) = edit.targets
    # An eraser behind a BatchNorm is exact for these statistics only: after more training the same
    # weight would remove another direction.
    now = fold_of(model, target.affine, target.bias, edit.site.width)
    same = torch.equal(now.scale, edit.fold.scale) and torch.equal(now.shift, edit.fold.shift)
    return same and now.bias_last == edit.fold.bias_last


def mismatch(path: str, edit: Recipe, found: Fingerprint) -> str:
    """Return the message for a parameter that is not the one of the edit's base."""
    kind = "bias" if len(found.shape) == 1 else "weight"
    return (
        f"'{path}' is not the {kind} that edit {edit.digest[:12]} was made for: expected "
        f"{edit.base.tensors[path]}, found {found}; load the base model "
        f"{dict(edit.base.description)}, or pass on_base_mismatch='warn' to edit this one anyway"
    )
