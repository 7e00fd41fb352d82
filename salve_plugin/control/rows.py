"""Rows of a parameter: which, where, and whether they are the same to the bit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from salve_plugin.control.operators.base import Index

Rows = tuple[int, ...] | None
"""Ascending outputs; None means all of them."""


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
    if first.device.type != "cpu" or second.device.type != "cpu":
        size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = size[first.element_size()]
        return torch.equal(first.view(bits), second.to(first.device).view(bits))
    # NumPy compares whole words with vector instructions; torch.equal takes five times a copy.
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in (first, second)]
    if raw[0].nbytes % 8 == 0:
        raw = [octets.view("i8") for octets in raw]
    return bool((raw[0] == raw[1]).all())
