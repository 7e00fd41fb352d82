"""Typed records: frozen dataclasses that go to JSON and come back, nothing lost or guessed."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any, TypeVar

import msgspec

from salve_plugin.errors import InputError

R = TypeVar("R", bound="Record")


class Record:
    """Gives a frozen dataclass its JSON form: its fields by name, and nothing else.

    msgspec checks types (a true is no integer, a text no number), `typing.Annotated` with
    `msgspec.Meta` adds bounds, and what types cannot say belongs into `__post_init__`, which raises
    `InputError`. A field that is unknown or left out is refused too, also inside other records.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain: dict[str, Any] = _plain(self)
        return plain

    @classmethod
    def from_json(cls: type[R], fields: object) -> R:
        """Rebuild a record from `to_json`.

        Raises:
            InputError: names the place and what was expected there.
        """
        plain = _plain(fields)
        try:
            record = msgspec.convert(plain, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"{cls.__name__} is ill-formed: {error}") from error
        # For dataclasses msgspec ignores what is unknown and fills in defaults.
        wrong = _difference(plain, _plain(record), "$")
        if wrong is not None:
            raise InputError(f"{cls.__name__} is ill-formed: {wrong}")
        return record


def _plain(value: Any) -> Any:
    """Return records and mappings as plain dicts, tuples as lists, and the rest as it is."""
    if isinstance(value, Record):
        # msgspec's own form leaves out fields that were filled in with their defaults.
        return {each.name: _plain(getattr(value, each.name)) for each in fields_of(value)}  # type: ignore[arg-type] # records are dataclasses
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _difference(given: Any, kept: Any, path: str) -> str | None:
    """Return what a record has lost or added of what was given, if anything."""
    if isinstance(given, dict) and isinstance(kept, dict):
        missing, unknown = sorted(set(kept) - set(given)), sorted(set(given) - set(kept))
        if missing or unknown:
            return (
                f"`{path}` lacks the fields {missing} and has the unknown fields "
                f"{str(unknown)[:200]}; expected {sorted(kept)}"
            )
        parts = [(given[name], kept[name], f"{path}.{name}") for name in given]
    elif isinstance(given, list) and isinstance(kept, list):
        parts = [(a, b, f"{path}[{at}]") for at, (a, b) in enumerate(zip(given, kept, strict=True))]
    else:
        return None
    return next((found for part in parts if (found := _difference(*part)) is not None), None)
