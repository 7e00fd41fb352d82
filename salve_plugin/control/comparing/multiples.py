"""Multiples of an edit: the same edit, done half or twice as much."""

import math
from dataclasses import replace

from salve_plugin.control.edit import Edit, check_edit
from salve_plugin.control.operators import Gate, LowRankMap, LowRankUpdate, Operator
from salve_plugin.control.operators.base import real
from salve_plugin.errors import InputError


def at_multiple(edit: Edit, multiple: float) -> Edit:
    r"""Return the edit done `multiple` times as much; 0 changes nothing, 1 is the edit itself.

    A gate has $\alpha$ times as large, a low-rank map $\lambda - 1$ times as large (so that its
    change of every weight is), and a low-rank update A and d. The exactness of the new edit has not
    been measured.

    Args:
        edit: any edit.
        multiple: any number for maps and updates, which below 0 turn round; for gates 0 or more.

    Raises:
        InputError: if the multiple is no finite number, a gate's is negative, or the result is out
            of an operator's range.
    """
    check_edit(edit)
    factor = real(multiple, "multiple")
    if not math.isfinite(factor):
        raise InputError(f"multiple {factor} is no finite number; 1 is the edit as it is")
    if factor == 1:  # also what was measured of it stays true
        return edit
    operator = new = edit.operator
    if isinstance(operator, Gate):
        new = replace(operator, strength=operator.strength * factor)
    elif isinstance(operator, LowRankMap):
        new = replace(operator, scale=1 + (operator.scale - 1) * factor)
    elif isinstance(operator, LowRankUpdate):
        shift = None if operator.shift is None else operator.shift.double() * factor
        new = replace(operator, left=operator.left.double() * factor, shift=shift)
    return replace(edit, operator=new, exactness=None)


def does_nothing(operator: Operator) -> bool:
    """Tell whether an operator, as it is, changes nothing: then all its multiples are the same."""
    if isinstance(operator, Gate):
        return operator.strength == 0
    if isinstance(operator, LowRankMap):
        return operator.scale == 1
    assert isinstance(operator, LowRankUpdate)
    weight = bool(operator.left.any()) and bool(operator.right.any())
    return not weight and (operator.shift is None or not bool(operator.shift.any()))
