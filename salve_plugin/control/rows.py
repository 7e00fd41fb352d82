"""Rows of a parameter: which, where, and whether they are the same to the bit."""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salve_plugin.control.operators.base import Index, Role
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.integers import whole

Rows = tuple[int, ...] | None
"""Ascending outputs; None means all of them."""

# None is the process itself, into which POSIX systems have loaded the C library. Without argument
# types ctypes would hand addresses over as 32-bit integers.
_memcmp = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def row_tuple(rows: Sequence[Any] | None) -> Rows:
    """Return outputs as integers, in the given order; None stays None, all of them.

    Raises:
        InputError: if one is no integer.
    """
    if rows is None:
        return None
    try:
        given = tuple(rows)
    except TypeError:
        raise InputError(
            f"rows {rows!r:.200} are no list; give output indices, e.g. rows=[3], or None for all"
        ) from None
    return tuple(whole(row, "a row (rows must be output indices)") for row in given)


def check_rows(rows: Rows, outputs: int, role: Role) -> None:
    """Raise InputError unless an edit of layers with so many outputs may change these rows."""
    if rows is None:
        return
    if role == "writer":
        raise InputError("rows are outputs of the site's readers; an edit of its writer has none")
    wrong = [row for row in rows if not 0 <= row < outputs]
    if wrong or not rows or len(set(rows)) < len(rows):
        raise InputError(
            f"rows {list(rows)[:10]} must be at least one output, each once, from 0 to "
            f"{outputs - 1}; omit rows to edit all of them"
        )


def slice_if_run(rows: Sequence[int]) -> Index:
    """Return consecutive rows as a slice, which needs no copy; others as an index tensor."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows)


def index_of(rows: Rows) -> Index:
    """Return what selects the rows of a tensor; None means all of them."""
    return slice(None) if rows is None else slice_if_run(rows)


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
    if not (first.is_cpu and second.is_cpu):
        size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = size[first.element_size()]
        return torch.equal(first.view(bits), second.to(first.device).view(bits))
    # The C library compares at the speed of memory and takes none for itself. torch.equal needs up
    # to four times as long, NumPy two to three: it writes down what it finds for every word.
    one, other = first.contiguous(), second.contiguous()
    places = one.data_ptr(), other.data_ptr()
    if 0 in places and one.numel():  # reading there would end the process
        raise UnsupportedModelError(
            f"a {type(one).__name__} and a {type(other).__name__} cannot be compared: a quantized "
            "tensor has no elements of its own; dequantize the model's weights first"
        )
    return int(_memcmp(*places, one.nbytes)) == 0
