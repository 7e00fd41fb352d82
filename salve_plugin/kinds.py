"""Arguments of another kind than a function takes, refused by name before anything is computed."""

from collections.abc import Iterator
from typing import Any

from salve_plugin.errors import InputError


def of_kind(value: object, kind: type | tuple[type, ...], name: str, expected: str) -> Any:
    """Return the value, which must be of a kind.

    Raises:
        InputError: names the value, and what was expected.
    """
    if not isinstance(value, kind):
        raise InputError(
            f"{name} is {value!r:.80}, of type {type(value).__name__}; expected {expected}"
        )
    return value


def several(value: object, name: str, expected: str) -> tuple[Any, ...]:
    """Return the values of something to go through; a text is one value, not its letters.

    Raises:
        InputError: as `of_kind`.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        # A scalar tensor or array has `__iter__` and is none that can be gone through.
        values: Iterator[Any] = iter(value)  # type: ignore[call-overload]
    except TypeError:
        raise InputError(
            f"{name} is {value!r:.80}, of type {type(value).__name__}; expected {expected}"
        ) from None
    return tuple(values)
