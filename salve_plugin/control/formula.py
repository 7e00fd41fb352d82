"""What edits make of the rows of one parameter: one formula of its pristine rows.

The pristine rows times the product of the edits' factors, plus the sum of what they add, both in
the order of the edits' digests, in float64 and cast once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from salve_plugin.control.operators import Part, cast_factors, product, scaled
from salve_plugin.control.operators.base import Index
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import Rows, same_bits, slice_if_run

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

    @cached_property
    def formula(self) -> "Formula | None":
        """What every row becomes, where that is the same in all of them; else None."""
        same_rows = all(entry.rows == self.rows for entry in self.entries)
        if not same_rows or not all(entry.part.is_same_in_every_row for entry in self.entries):
            return None
        first = range(1) if self.rows is None else self.rows[:1]
        return _formula(_ordered(self.entries), first, self)

    def __getstate__(self) -> dict[str, object]:
        """Pickle and copy the fields, not what was derived from them."""
        return {"entries": self.entries, "rows": self.rows, "pristine": self.pristine}

    def without(self, *edits: Recipe) -> "Ledger":
        """Return the ledger with some edits less; it still covers all its rows."""
        left = tuple(entry for entry in self.entries if entry.edit not in edits)
        return Ledger(left, self.rows, self.pristine)


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

    @cached_property
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
        # In float64 and cast once at the end: rounding between two edits would depend on their
        # order, and on the CPU, since other devices may fuse or reorder the additions.
        total = values.detach().to("cpu", torch.float64, copy=True)
        if self.factors is not None:
            total *= self.factors
        for part, rows in self.added:
            change = part.added_at(rows)
            assert change is not None
            total += change
        return total.to(values.dtype).to(values.device)


def composed(ledger: Ledger) -> Tensor:
    """Return what the ledger's formula gives for all the rows that it covers, as a new tensor."""
    result = torch.empty_like(ledger.pristine)
    count = len(ledger.pristine)
    rows = range(count) if ledger.rows is None else ledger.rows
    for _, source, formula in pieces(rows, ledger, len(rows)):
        put(result, source, formula.of(at(ledger.pristine, source)))
    return result


def holds(tensor: Tensor, ledger: Ledger) -> bool:
    """Say whether a parameter is, bit for bit, what the ledger's formula gives."""
    if not fits(tensor, ledger):
        return False
    current, pristine = tensor.detach(), ledger.pristine
    # One small piece of memory again and again: it stays in cache, and fresh pages cost more than
    # the arithmetic.
    step = step_of(pristine)
    room = torch.empty_like(at(pristine, slice(0, step)))
    for rows, source, formula in pieces(covered(current, ledger), ledger, step):
        # Computed again, not kept: a ledger holds the pristine rows only, and the parameter is the
        # one copy of the edited ones.
        values = at(pristine, source)
        room_here = at(room, slice(0, values.size(0))) if formula.is_scaling else None
        # In the parameter's own type: an edited model that is cast as a whole still holds its
        # edits, and reverts to the cast base.
        expected = formula.of(values, out=room_here).to(current)
        if not same_bits(at(current, rows), expected):
            return False
    return True


def fits(tensor: Tensor, ledger: Ledger) -> bool:
    """Say whether a parameter has the rows of the ledger: another may have taken its place."""
    if ledger.rows is None:
        return tensor.shape == ledger.pristine.shape
    if not tensor.ndim or tensor.shape[1:] != ledger.pristine.shape[1:]:
        return False
    return ledger.rows[-1] < len(tensor)


def at(tensor: Tensor, rows: Index) -> Tensor:
    """Return rows; the tensor itself if these are all, as a view costs as much as scaling a row."""
    whole = isinstance(rows, slice) and rows == slice(0, tensor.size(0))
    return tensor if whole else tensor[rows]


def step_of(pristine: Tensor) -> int:
    """Return how many rows are worked on at once."""
    count = pristine.size(0)
    return min(count, max(1, _BLOCK * count // max(1, pristine.numel())))


def covered(tensor: Tensor, ledger: Ledger) -> Sequence[int]:
    """Return the rows of a parameter that a ledger covers."""
    return range(tensor.size(0)) if ledger.rows is None else ledger.rows


def pieces(
    rows: Sequence[int], ledger: Ledger, step: int | None = None
) -> Iterator[tuple[Index, Index, Formula]]:
    """Yield (rows of the parameter, their place in `pristine`, their formula), `step` at most."""
    formula = ledger.formula
    groups = _groups(rows, ledger) if formula is None else [(rows, range(len(rows)), ())]
    for own, source, entries in groups:
        ordered = _ordered(entries)
        shared = formula
        # Factors that all rows share are multiplied once, not again for every piece.
        if shared is None and all(entry.part.is_same_in_every_row for entry in ordered):
            shared = _formula(ordered, own[:1], ledger)
        length = step or len(own)
        for start in range(0, len(own), length):
            here = slice(start, start + length)
            own_formula = shared or _formula(ordered, own[here], ledger)
            yield slice_if_run(own[here]), slice_if_run(source[here]), own_formula


def _ordered(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return them by digest: rounding must not depend on the order in which edits were applied."""
    return entries if len(entries) < 2 else sorted(entries, key=lambda entry: entry.edit.digest)


def _formula(entries: Sequence[Entry], rows: Sequence[int], ledger: Ledger) -> Formula:
    parts = [(entry.part, _within(entry.rows, rows)) for entry in entries]
    factors = [own for part, at in parts if (own := part.factors_at(at)) is not None]
    whole = product(factors) if factors else None
    cast = None if whole is None else cast_factors(whole, ledger.pristine)
    return Formula(whole, cast, tuple(pair for pair in parts if pair[0].left is not None))


def _within(covered: Rows, rows: Sequence[int]) -> Index:
    """Return the positions of rows among those that an entry covers."""
    if covered is None or rows == covered:
        return slice_if_run(rows if covered is None else range(len(rows)))
    place = {row: at for at, row in enumerate(covered)}
    return slice_if_run([place[row] for row in rows])


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


def put(tensor: Tensor, rows: Index, values: Tensor) -> None:
    """Write values into rows, in the type and on the device of the parameter."""
    if isinstance(rows, slice):
        at(tensor, rows).copy_(values)  # casts and moves by itself, and needs no temporary
    else:
        tensor[rows] = values.to(tensor)
