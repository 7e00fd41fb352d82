"""The ledger of one parameter: which edits are on it, and what its rows were without any.

A parameter that carries edits is at all times one formula of its ledger: the pristine rows times
the product of the edits' factors, plus the sum of what they add, both in the order of the edits'
digests, in float64 and cast once. So the order of application does not matter, undo never divides
or subtracts, and changes by others are noticed.

The ledger lies at the parameter: every module that holds it (tied weights are one parameter) keeps
the same ledger under the parameter's name, as a plain attribute. It is no part of the state dict,
is copied and pickled with the modules, and is gone with the last edit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salve_plugin.control.operators import Part, cast_factors, product, scaled
from salve_plugin.control.operators.base import Index
from salve_plugin.control.recipe import Recipe, Rows
from salve_plugin.control.targets import Slot
from salve_plugin.errors import EditStateError, InputError

ATTRIBUTE = "_salve_ledgers"
_BLOCK = 1 << 18  # elements compared at once


@dataclass(frozen=True, eq=False)
class Entry:
    """What one edit does to one parameter.

    Attributes:
        edit: which.
        rows: of the parameter; None means all.
        part: the formula for these rows.
    """

    edit: Recipe
    rows: Rows
    part: Part


@dataclass(frozen=True, eq=False)
class Ledger:
    """What is applied to one parameter.

    Attributes:
        entries: in order of application; an edit of two slices of a parameter has two.
        rows: the rows that any of them touches, ascending; None means all.
        pristine: those rows without any edit, in the parameter's layout.
    """

    entries: tuple[Entry, ...]
    rows: Rows
    pristine: Tensor

    @property
    def edits(self) -> tuple[Recipe, ...]:
        """The edits, each once, in order of application."""
        return tuple(dict.fromkeys(entry.edit for entry in self.entries))

    def without(self, *edits: Recipe) -> "Ledger":
        """Return the ledger with some edits less; it still covers all its rows."""
        return replace(self, entries=tuple(e for e in self.entries if e.edit not in edits))


@dataclass(frozen=True, eq=False)
class Planned:
    """A parameter, the ledger that it has and the one to come, which covers all rows to write."""

    slot: Slot
    present: Ledger | None
    coming: Ledger


def ledger_of(slot: Slot) -> Ledger | None:
    """Return the ledger of a parameter; None if no edit is on it."""
    ledgers: list[Ledger] = []
    for module, name in slot.owners:  # a module that was tied later knows of none
        ledger = module.__dict__.get(ATTRIBUTE, {}).get(name)
        if isinstance(ledger, Ledger) and all(ledger is not known for known in ledgers):
            ledgers.append(ledger)
    if len(ledgers) < 2:
        return ledgers[0] if ledgers else None
    # Modules that were edited one by one and tied later: one of them knows this very tensor.
    return next((known for known in ledgers if holds(slot.parameter, known)), ledgers[0])


def pristine_of(slot: Slot) -> Tensor:
    """Return the parameter without edits; the parameter itself if there are none."""
    ledger = ledger_of(slot)
    if ledger is None:
        return slot.parameter.detach()
    if not fits(slot.parameter, ledger):
        raise EditStateError(
            f"'{slot.path}' of shape {list(slot.parameter.shape)} has taken the place of an edited "
            "parameter of another shape; forget_(model) accepts it as it is"
        )
    whole = slot.parameter.detach().clone()
    whole[index_of(ledger.rows)] = ledger.pristine.to(whole)
    return whole


def composed(ledger: Ledger) -> Tensor:
    """Return what the ledger's formula gives for all the rows that it covers, as a new tensor."""
    result = torch.empty_like(ledger.pristine)
    count = len(ledger.pristine)
    rows = range(count) if ledger.rows is None else ledger.rows
    for _, source, formula in _pieces(rows, ledger, len(rows)):
        _put(result, source, formula.of(ledger.pristine[source]))
    return result


def commit(plan: Sequence[Planned]) -> None:
    """Bring every parameter and ledger to the planned state; on any error, back to the present."""
    # What takes memory, and so may fail, comes before the first write.
    records = [(planned.slot, _trimmed(planned.coming)) for planned in plan]
    try:
        for planned in plan:
            _write(planned.slot, planned.coming)
        for slot, ledger in records:
            _record(slot, ledger)
    except BaseException:  # an interrupt between two parameters must not leave half an edit either
        for planned in plan:
            # The coming ledger has the pristine rows of all that may have been written.
            entries = () if planned.present is None else planned.present.entries
            _write(planned.slot, replace(planned.coming, entries=entries))
            _record(planned.slot, planned.present)
        raise
    finally:
        # Autocast keeps casts of parameters that it would go on using inside its region.
        torch.clear_autocast_cache()


def forget(slot: Slot) -> None:
    """Drop the ledger of a parameter."""
    for module, name in slot.owners:
        ledgers = module.__dict__.get(ATTRIBUTE, {})
        ledgers.pop(name, None)
        if not ledgers:
            module.__dict__.pop(ATTRIBUTE, None)


def _trimmed(ledger: Ledger) -> Ledger | None:
    """Return the ledger of no more rows than its entries touch; None if there are no entries."""
    if not ledger.entries:
        return None
    touched = union_of([entry.rows for entry in ledger.entries])
    if touched is None or touched == ledger.rows:
        return ledger
    covered = range(len(ledger.pristine)) if ledger.rows is None else ledger.rows
    position = {row: at for at, row in enumerate(covered)}
    kept = take(ledger.pristine, tuple(position[row] for row in touched)).clone()
    return Ledger(ledger.entries, touched, kept)


def _record(slot: Slot, ledger: Ledger | None) -> None:
    if ledger is None:
        forget(slot)
        return
    for module, name in slot.owners:
        # Not setattr: a ledger is no parameter, buffer or submodule; some modules forbid others.
        module.__dict__.setdefault(ATTRIBUTE, {})[name] = ledger


def _write(slot: Slot, ledger: Ledger) -> None:
    parameter = slot.parameter.detach()
    scales = all(entry.part.left is None for entry in ledger.entries)
    in_place = scales and ledger.pristine.element_size() >= 4
    # Whatever needs temporaries is done in pieces that stay in cache.
    step = None if in_place else _step(ledger.pristine)
    for rows, source, formula in _pieces(_covered(parameter, ledger), ledger, step):
        values = ledger.pristine[source]
        same = values.dtype == parameter.dtype and values.device == parameter.device
        if formula.is_scaling and same and isinstance(rows, slice):
            written = formula.of(values, out=parameter[rows])
        else:
            written = formula.of(values)
            _put(parameter, rows, written)
        if formula.may_overflow:
            _check_finite(slot, values, written)


def _check_finite(slot: Slot, values: Tensor, written: Tensor) -> None:
    """Raise InputError if finite values became infinite or NaN."""
    if bool(written.isfinite().all()) or not bool(values.isfinite().all()):
        return  # what was not finite before is nobody's overflow
    raise InputError(
        f"the edit makes weights of '{slot.path}' that {written.dtype} cannot hold; use a smaller "
        "strength or smaller directions. Nothing was written"
    )


def holds(tensor: Tensor, ledger: Ledger) -> bool:
    """Say whether a parameter is, bit for bit, what the ledger's formula gives."""
    return fits(tensor, ledger) and all(held for held, *_ in _compared(tensor.detach(), ledger))


def fits(tensor: Tensor, ledger: Ledger) -> bool:
    """Say whether a parameter has the rows of the ledger: another may have taken its place."""
    if not tensor.ndim or tensor.shape[1:] != ledger.pristine.shape[1:]:
        return False
    if ledger.rows is None:
        return len(tensor) == len(ledger.pristine)
    return ledger.rows[-1] < len(tensor)


def restore(plan: Sequence[tuple[Slot, Ledger]]) -> Slot | None:
    """Put all pristine rows back, comparing and writing in one pass over memory.

    Returns:
        A parameter that is not what its ledger's formula gives, if there is one; then, as on any
        error, every parameter is as it was.
    """
    done: list[tuple[Slot, Ledger, Index, Index, Formula]] = []
    try:
        for slot, ledger in plan:
            parameter = slot.parameter.detach()
            if not fits(parameter, ledger):
                _redo(done)
                return slot
            for held, rows, source, formula in _compared(parameter, ledger):
                if not held:
                    _redo(done)
                    return slot
                # Noted before it is written: what is redone too often is still right.
                done.append((slot, ledger, rows, source, formula))
                _put(parameter, rows, ledger.pristine[source])
        for slot, _ in plan:
            forget(slot)
    except BaseException:
        _redo(done)
        for slot, ledger in plan:
            _record(slot, ledger)
        raise
    finally:
        torch.clear_autocast_cache()
    return None


def _redo(done: Sequence[tuple[Slot, Ledger, Index, Index, "Formula"]]) -> None:
    """Write what had been compared and found equal to the formula, and then been overwritten."""
    for slot, ledger, rows, source, formula in done:
        _put(slot.parameter.detach(), rows, formula.of(ledger.pristine[source]))


def _put(tensor: Tensor, rows: Index, values: Tensor) -> None:
    if isinstance(rows, slice):
        tensor[rows].copy_(values)  # casts and moves by itself, and needs no temporary
    else:
        tensor[rows] = values.to(tensor)


@dataclass(frozen=True, eq=False)
class Formula:
    """What some rows of a parameter become: values · factors + the sum of what parts add.

    Attributes:
        factors: in float64, broadcast over the rows; None if nothing is scaled.
        cast: the same as they multiply rows to which nothing is added.
        added: the parts that add, with the positions of the rows among each part's own.
    """

    factors: Tensor | None
    cast: Tensor | None
    added: tuple[tuple[Part, Index], ...]

    @property
    def may_overflow(self) -> bool:
        """Whether finite rows may become infinite: not where they only shrink."""
        return bool(self.added) or (self.cast is not None and not bool((self.cast <= 1).all()))

    @property
    def is_scaling(self) -> bool:
        """Whether rows are only multiplied."""
        return self.cast is not None and not self.added

    def of(self, values: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return what the rows become, in their dtype, into `out` if nothing is added.

        Rows that are only scaled are multiplied in their own precision (16-bit ones in float32).
        """
        if not self.added:
            return values if self.cast is None else scaled(values, self.cast, out=out)
        total = values.detach().to("cpu", torch.float64, copy=True)
        if self.factors is not None:
            total *= self.factors
        for part, rows in self.added:
            change = part.added_at(rows)
            assert change is not None
            total += change
        return total.to(values.dtype).to(values.device)


def _compared(tensor: Tensor, ledger: Ledger) -> Iterator[tuple[bool, Index, Index, Formula]]:
    """Yield whether a piece of the parameter is what the formula gives, and the piece."""
    # One small piece of memory again and again: it stays in cache, and fresh pages cost more than
    # the arithmetic.
    pristine = ledger.pristine
    step = _step(pristine)
    room = pristine.new_empty(step, *pristine.shape[1:])
    for rows, source, formula in _pieces(_covered(tensor, ledger), ledger, step):
        values = pristine[source]
        room_here = room[: len(values)] if formula.is_scaling else None
        values = formula.of(values, out=room_here)
        yield same_bits(tensor[rows], values.to(tensor)), rows, source, formula


def _step(pristine: Tensor) -> int:
    """Return how many rows are worked on at once."""
    per_row = max(1, pristine[0].numel()) if len(pristine) else 1
    return min(len(pristine), max(1, _BLOCK // per_row))


def _covered(tensor: Tensor, ledger: Ledger) -> Sequence[int]:
    return range(len(tensor)) if ledger.rows is None else ledger.rows


def _pieces(
    rows: Sequence[int], ledger: Ledger, step: int | None = None
) -> Iterator[tuple[Index, Index, Formula]]:
    """Yield (rows of the parameter, their place in `pristine`, their formula), `step` at most."""
    for own, source, entries in _groups(rows, ledger):
        # By digest, so that rounding does not depend on the order in which edits were applied.
        ordered = sorted(entries, key=lambda entry: entry.edit.digest)
        # Factors that all rows share are multiplied once, not again for every piece.
        alike = all(entry.part.is_same_in_every_row for entry in ordered)
        formula = _formula(ordered, own[:1], ledger) if alike else None
        length = step or len(own)
        for start in range(0, len(own), length):
            here = slice(start, start + length)
            own_formula = formula or _formula(ordered, own[here], ledger)
            yield _slice_if_run(own[here]), _slice_if_run(source[here]), own_formula


def _formula(entries: Sequence[Entry], rows: Sequence[int], ledger: Ledger) -> Formula:
    parts = [(entry.part, _within(entry.rows, rows)) for entry in entries]
    factors = [own for part, at in parts if (own := part.factors_at(at)) is not None]
    whole = product(factors) if factors else None
    cast = None if whole is None else cast_factors(whole, ledger.pristine)
    return Formula(whole, cast, tuple(pair for pair in parts if pair[0].left is not None))


def _within(covered: Rows, rows: Sequence[int]) -> Index:
    """Return the positions of rows among those that an entry covers."""
    if covered is None or rows == covered:
        return _slice_if_run(rows if covered is None else range(len(rows)))
    place = {row: at for at, row in enumerate(covered)}
    return _slice_if_run([place[row] for row in rows])


def _groups(
    rows: Sequence[int], ledger: Ledger
) -> Iterator[tuple[Sequence[int], Sequence[int], tuple[Entry, ...]]]:
    """Yield (rows, their positions in `pristine`, entries on them), one for each set of entries."""
    if all(entry.rows == ledger.rows for entry in ledger.entries):
        yield rows, range(len(rows)), ledger.entries
        return
    # Rows that the same edits are on have one formula; a row more or less is another group.
    touched = [(e, None if e.rows is None else set(e.rows)) for e in ledger.entries]
    groups: dict[tuple[Entry, ...], list[int]] = {}
    for at, row in enumerate(rows):
        key = tuple(entry for entry, own in touched if own is None or row in own)
        groups.setdefault(key, []).append(at)
    for entries, positions in groups.items():
        yield [rows[at] for at in positions], positions, entries


def _slice_if_run(rows: Sequence[int]) -> Index:
    """Return consecutive rows as a slice, which needs no copy; others as an index tensor."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows)


def index_of(rows: Rows) -> Index:
    """Return what selects the rows of a tensor; None means all of them."""
    return slice(None) if rows is None else _slice_if_run(rows)


def take(tensor: Tensor, rows: Rows) -> Tensor:
    """Return the rows: a view where that is possible."""
    return tensor[index_of(rows)]


def union_of(several: Sequence[Rows]) -> Rows:
    """Return the rows in any of several; None means all."""
    rows: set[int] = set()
    for part in several:
        if part is None:
            return None
        rows.update(part)
    return tuple(sorted(rows))


def common_rows(first: Rows, second: Rows) -> Rows:
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
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in (first, second)]
    if raw[0].nbytes % 8 == 0:
        raw = [octets.view("i8") for octets in raw]
    return bool((raw[0] == raw[1]).all())
