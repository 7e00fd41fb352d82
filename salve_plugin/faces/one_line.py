"""Reprs of one short line: a tensor printed in full fills the screen and says nothing."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from torch import Tensor

from salve_plugin.errors import printable

MOST = 300
"""Characters of a repr."""

_PART = 60
"""Characters of one attribute in it."""

_FEW = 20
"""Longer collections are not even tried: they may hold tensors, which take long to print."""


def one_line(self: Any) -> str:
    """Return the attributes of a dataclass that are set, tensors and collections by their size.

    Meant as the class's `__repr__`.
    """
    parts = []
    for field in fields(self):
        value = getattr(self, field.name)
        left_out = value is None and field.default is None
        if field.repr and not left_out:
            parts.append(f"{field.name}={brief(value)}")
    return shortened(f"{type(self).__name__}({', '.join(parts)})")


def shortened(text: str, most: int = MOST) -> str:
    """Return a text in one printable line, its end left out if it is too long."""
    line = printable(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def listed(items: Collection[Any], most: int = 6) -> str:
    """Return a collection as a list; of a long one the beginning and the number.

    >>> listed(range(1000))
    '[0, 1, 2, 3, 4, 5, … 1000 in all]'
    """
    if len(items) <= most:
        return str(list(items))
    beginning = ", ".join(repr(item) for item, _ in zip(items, range(most), strict=False))
    return f"[{beginning}, … {len(items)} in all]"


def brief(value: object) -> str:
    """Return a value in a few words."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{value.item():.4g}" if not value.ndim else f"{kind}{list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Collection) and not isinstance(value, str):
        text = repr(value) if len(value) <= _FEW else ""
        fits = text and len(text) <= _PART
        return text if fits else f"<{type(value).__name__} of {len(value)}>"
    text = repr(value)
    if len(text) <= _PART:
        return text
    return shortened(text, _PART) if isinstance(value, str) else f"<{type(value).__name__}>"
