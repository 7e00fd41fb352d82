"""Arguments of another kind than a function takes, refused by name before anything is computed."""

from collections.abc import Iterable
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
    kind = object if not isinstance(value, str | bytes) else tuple
    return tuple(of_kind(of_kind(value, kind, name, expected), Iterable, name, expected))
