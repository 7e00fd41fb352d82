"""The ledger of one weight: which edits are on it, and what its rows were without any.

A weight that carries edits is at all times one formula of its ledger: the pristine rows times the
product of the edits' multipliers (in float64, in the order of their digests, cast once). So the
order of application does not matter, undo never divides, and changes by others are noticed.

The ledger is a plain attribute of the layer: no part of the state dict, copied and pickled with the
layer, gone with the last edit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salve_plugin.control.base import Reader
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import cast_factors, product, scaled

ATTRIBUTE = "_salve_ledger"
_BLOCK = 1 << 18  # elements compared at once

Index = slice | Tensor


@dataclass(frozen=True)
class Ledger:
    """What is applied to one weight.

    Attributes:
        edits: in order of application.
        rows: the rows that any of them touches, ascending; None means all.
        pristine: those rows without any edit.
    """

    edits: tuple[Edit, ...]
    rows: tuple[int, ...] | None
    pristine: Tensor

    def without(self, *edits: Edit) -> "Ledger":
        """Return the ledger with some edits less; it still covers all its rows."""
        return replace(self, edits=tuple(other for other in self.edits if other not in edits))


def ledger_of(reader: Reader) -> Ledger | None:
    """Return the ledger of a weight; None if no edit is on it."""
    ledger = reader.module.__dict__.get(ATTRIBUTE)
    return ledger if isinstance(ledger, Ledger) else None


def pristine_matrix(reader: Reader) -> Tensor:
    """Return the weight (outputs, width) without edits; the weight itself if there are none."""
    ledger = ledger_of(reader)
    if ledger is None:
        return reader.matrix
    whole = reader.matrix.clone()
    whole[index_of(ledger.rows)] = ledger.pristine.to(whole)
    return whole


def composed(pristine: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Return what several edits make of all the rows that any of them touches, as a new tensor.

    Args:
        pristine: those rows without any edit, ascending, (rows, width).
        edits: of one weight.
    """
    ledger = Ledger(tuple(edits), union_of([edit.rows for edit in edits]), pristine)
    result = torch.empty_like(pristine)
    for _, at, factors in _parts(pristine, ledger):
        assert factors is not None  # no row is untouched
        _put(result, at, scaled(pristine[at], factors))
    return result


def commit(plan: Sequence[tuple[Reader, tuple[Edit, ...], Ledger]]) -> None:
    """Bring every weight and ledger to the planned state; on any error, back to the present one.

    Args:
        plan: for each weight, the edits on its rows now and the ledger to come. That ledger covers
            all rows to write, also those that its edits no longer touch.
    """
    try:
        for reader, _, ledger in plan:
            _write(reader, ledger)
    except BaseException:  # an interrupt between two weights must not leave half an edit either
        for reader, edits, ledger in plan:
            _write(reader, replace(ledger, edits=edits))
        raise
    for reader, _, ledger in plan:
        _record(reader, ledger)


def _record(reader: Reader, ledger: Ledger) -> None:
    if not ledger.edits:
        reader.module.__dict__.pop(ATTRIBUTE, None)
        return
    touched = union_of([edit.rows for edit in ledger.edits])
    if touched != ledger.rows:
        assert touched is not None
        covered = range(len(ledger.pristine)) if ledger.rows is None else ledger.rows
        position = {row: at for at, row in enumerate(covered)}
        kept = take(ledger.pristine, tuple(position[row] for row in touched)).clone()
        ledger = Ledger(ledger.edits, touched, kept)
    # Not setattr: a ledger is no parameter, buffer or submodule, and some modules forbid others.
    reader.module.__dict__[ATTRIBUTE] = ledger


def _write(reader: Reader, ledger: Ledger) -> None:
    matrix = reader.matrix
    for rows, source, factors in _parts(matrix, ledger):
        values = ledger.pristine[source]
        same = values.dtype == matrix.dtype and values.device == matrix.device
        if factors is not None and same and isinstance(rows, slice):
            scaled(values, factors, out=matrix[rows])
        else:
            _put(matrix, rows, values if factors is None else scaled(values, factors))


def holds(matrix: Tensor, ledger: Ledger) -> bool:
    """Say whether a weight (outputs, width) is, bit for bit, what the ledger's formula gives."""
    return all(held for held, *_ in _compared(matrix, ledger))


def restore(plan: Sequence[tuple[Reader, Ledger]]) -> Reader | None:
    """Put all pristine rows back, comparing and writing in one pass over memory.

    Returns:
        A weight that is not what its ledger's formula gives, if there is one; then, as on any
        error, every weight is as it was.
    """
    done: list[tuple[Reader, Ledger, Index, Index, Tensor | None]] = []
    try:
        for reader, ledger in plan:
            for held, rows, source, factors in _compared(reader.matrix, ledger):
                if not held:
                    _redo(done)
                    return reader
                done.append((reader, ledger, rows, source, factors))
                _put(reader.matrix, rows, ledger.pristine[source])
    except BaseException:
        _redo(done)
        raise
    for reader, _ in plan:
        reader.module.__dict__.pop(ATTRIBUTE, None)
    return None


def _redo(done: Sequence[tuple[Reader, Ledger, Index, Index, Tensor | None]]) -> None:
    """Write what had been compared and found equal to the formula, and then been overwritten."""
    for reader, ledger, rows, source, factors in done:
        values = ledger.pristine[source]
        values = values if factors is None else scaled(values, factors)
        _put(reader.matrix, rows, values)


def _put(matrix: Tensor, rows: Index, values: Tensor) -> None:
    if isinstance(rows, slice):
        matrix[rows].copy_(values)  # casts and moves by itself, and needs no temporary
    else:
        matrix[rows] = values.to(matrix)


def _compared(matrix: Tensor, ledger: Ledger) -> Iterator[tuple[bool, Index, Index, Tensor | None]]:
    """Yield whether a part of the weight is what the formula gives, and the part (`_parts`)."""
    # One small piece of memory again and again: it stays in cache, and fresh pages cost more than
    # the arithmetic.
    step = min(len(ledger.pristine), max(1, _BLOCK // matrix.shape[1]))
    room = ledger.pristine.new_empty(step, matrix.shape[1])
    for rows, source, factors in _parts(matrix, ledger, step):
        values = ledger.pristine[source]
        if factors is not None:
            values = scaled(values, factors, out=room[: len(values)])
        yield same_bits(matrix[rows], values.to(matrix)), rows, source, factors


def _parts(
    matrix: Tensor, ledger: Ledger, step: int | None = None
) -> Iterator[tuple[Index, Index, Tensor | None]]:
    """Yield (rows of the weight, their place in `pristine`, their factors), at most `step` rows."""
    for rows, source, edits in _groups(ledger, len(matrix)):
        ordered = sorted(edits, key=lambda edit: edit.digest)
        factors = product([edit.factors for edit in ordered]) if ordered else None
        factors = None if factors is None else cast_factors(factors, ledger.pristine)
        for start in range(0, len(rows), step or len(rows)):
            part = slice(start, start + (step or len(rows)))
            yield _slice_if_run(rows[part]), _slice_if_run(source[part]), factors


def _groups(
    ledger: Ledger, n_rows: int
) -> Iterator[tuple[Sequence[int], Sequence[int], tuple[Edit, ...]]]:
    """Yield (rows, their positions in `pristine`, edits on them), one for each set of edits."""
    rows: Sequence[int] = range(n_rows) if ledger.rows is None else ledger.rows
    if all(edit.rows == ledger.rows for edit in ledger.edits):
        yield rows, range(len(rows)), ledger.edits
        return
    touched = [(edit, None if edit.rows is None else set(edit.rows)) for edit in ledger.edits]
    groups: dict[tuple[Edit, ...], list[int]] = {}
    for at, row in enumerate(rows):
        key = tuple(edit for edit, own in touched if own is None or row in own)
        groups.setdefault(key, []).append(at)
    for edits, positions in groups.items():
        yield [rows[at] for at in positions], positions, edits


def _slice_if_run(rows: Sequence[int]) -> Index:
    """Return consecutive rows as a slice, which needs no copy; others as an index tensor."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows)


def index_of(rows: tuple[int, ...] | None) -> Index:
    """Return what selects the rows of a matrix; None means all of them."""
    return slice(None) if rows is None else _slice_if_run(rows)


def take(matrix: Tensor, rows: tuple[int, ...] | None) -> Tensor:
    """Return the rows: a view where that is possible."""
    return matrix[index_of(rows)]


def union_of(several: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Return the rows in any of several; None means all."""
    rows: set[int] = set()
    for one in several:
        if one is None:
            return None
        rows.update(one)
    return tuple(sorted(rows))


def common_rows(
    first: tuple[int, ...] | None, second: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Return the rows in both; None means all."""
    if first is None or second is None:
        return first if second is None else second
    return tuple(sorted(set(first) & set(second)))


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Compare shape, dtype and bits: unlike `torch.equal`, -0 differs from 0 and NaN equals NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.device.type != "cpu" or second.device.type != "cpu":
        size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = size[first.element_size()]
        return torch.equal(first.view(bits), second.to(first.device).view(bits))
    # NumPy compares whole words with vector instructions; torch.equal takes five times a copy.
    words = [each.contiguous().reshape(-1).view(torch.uint8).numpy() for each in (first, second)]
    if words[0].nbytes % 8 == 0:
        words = [each.view("i8") for each in words]
    return bool((words[0] == words[1]).all())
