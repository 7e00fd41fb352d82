"""The ledger of one parameter: which edits are on it, and what its rows were without any.

A parameter that carries edits is at all times one formula of its ledger: the pristine rows times
the product of the edits' factors, plus the sum of what they add, both in the order of the edits'
digests, in float64 and cast once. So the order of application does not matter, undo never divides
or subtracts, and changes by others are noticed.

The ledger lies at the parameter: every module that holds it (tied weights are one parameter) keeps
the same ledger under the parameter's name, as a plain attribute. It is no part of the state dict,
is copied and pickled with the modules, and is gone with the last edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salve_plugin.control.formula import (
    Ledger,
    at,
    covered,
    fits,
    holds,
    pieces,
    put,
    step_of,
)
from salve_plugin.control.rows import index_of, slice_if_run, take, union_of
from salve_plugin.control.slots import Slot
from salve_plugin.errors import EditStateError, InputError

ATTRIBUTE = "_salve_ledgers"


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
    # Put back, not divided out: factors may be zero, and products were rounded.
    whole = slot.parameter.detach().clone()
    whole[index_of(ledger.rows)] = ledger.pristine.to(whole)
    return whole


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
    # The usual case, for which no set of all the rows is made.
    if any(entry.rows == ledger.rows for entry in ledger.entries):
        return ledger
    touched = union_of([entry.rows for entry in ledger.entries])
    if touched is None or touched == ledger.rows:
        return ledger
    known = range(len(ledger.pristine)) if ledger.rows is None else ledger.rows
    position = {row: place for place, row in enumerate(known)}
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
    if not ledger.entries:
        put(parameter, slice_if_run(covered(parameter, ledger)), ledger.pristine)
        return
    scales = all(entry.part.left is None for entry in ledger.entries)
    # A product in the parameter's own precision goes straight into its rows, with no temporary.
    in_place = scales and ledger.pristine.element_size() >= 4
    # Whatever needs temporaries is done in pieces that stay in cache.
    step = None if in_place else step_of(ledger.pristine)
    for rows, source, formula in pieces(covered(parameter, ledger), ledger, step):
        values = at(ledger.pristine, source)
        # After a cast or a move the pristine rows still are as they were, and the product has to
        # follow the parameter.
        same = values.dtype == parameter.dtype and values.device == parameter.device
        if formula.is_scaling and same and isinstance(rows, slice):
            written = formula.of(values, out=at(parameter, rows))
        else:
            written = formula.of(values)
            put(parameter, rows, written)
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
