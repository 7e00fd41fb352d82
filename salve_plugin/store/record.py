"""Typed records: frozen dataclasses that go to JSON and come back, nothing lost or guessed."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from salve_plugin.errors import InputError
from salve_plugin.store.json import MAX_INTEGER

R = TypeVar("R", bound="Record")

# `$` also matches before a newline at the end in Python, in JSON Schema it does not: hence (?!\n).
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
Index = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Text = Annotated[str, Meta(min_length=1, max_length=100)]
Name = Annotated[str, Meta(min_length=1, max_length=300)]
PLAIN_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
"""What people may name parts of a folder: the same file on every system, and never a path."""
ParameterPath = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$(?!\n)", max_length=500)
]
Notes = Annotated[dict[Name, Any], Meta(max_length=100)]
"""Free fields for people."""


class Record:
    """Gives a frozen dataclass its JSON form: its fields by name, and nothing else.

    msgspec checks types (a true is no integer, a text no number), `typing.Annotated` with
    `msgspec.Meta` adds bounds, and what types cannot say belongs into `__post_init__`, which raises
    `InputError`. A field that is unknown or left out is refused too, also inside other records.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain: dict[str, Any] = as_json(self)
        return plain

    @classmethod
    def from_json(cls: type[R], given: object) -> R:
        """Rebuild a record from `to_json`.

        Args:
            given: the fields by name, in plain JSON values.

        Raises:
            InputError: names the place and what was expected there.
        """
        plain = as_json(given)
        try:
            record = msgspec.convert(plain, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"{cls.__name__} is ill-formed: {str(error)[:400]}") from error
        # For dataclasses msgspec ignores what is unknown and fills in defaults.
        wrong = _difference(plain, record, "$")
        if wrong is not None:
            raise InputError(f"{cls.__name__} is ill-formed: {wrong}")
        return record

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """Return what `from_json` takes as a JSON Schema (draft 2020-12)."""
        schema = msgspec.json.schema(cls)
        for definition in schema["$defs"].values():
            known = definition.get("properties", {})
            if known:
                # Only what may be absent (UNSET) is no field with a default, nor required.
                required = {*definition["required"], *(n for n in known if "default" in known[n])}
                definition |= {"required": sorted(required), "additionalProperties": False}
        return schema


def check_plain_name(name: str, what: str) -> None:
    """Raise InputError unless people may name a part so; `what` says of what kind it is."""
    if not isinstance(name, str) or not re.fullmatch(PLAIN_NAME, name):
        raise InputError(
            f"{what} name {str(name)[:100]!r} is not a plain name; use up to 64 lower-case "
            "letters, digits, '_' and '-', without the ending of a file"
        )


def _fields(record: Any) -> dict[str, Any]:
    """Return the fields of a record that it has, by name."""
    # Not `to_builtins`, which leaves out what `convert` filled in from a class's defaults.
    values = {name: getattr(record, name) for name in type(record).__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


def as_json(value: Any) -> Any:
    """Return the JSON form: objects of records and mappings, lists of tuples."""
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if is_dataclass(value):
        return {name: as_json(item) for name, item in _fields(value).items()}
    return value


def _difference(given: Any, kept: Any, path: str) -> str | None:
    """Return what was given and a record has not, or the reverse, if anything."""
    pairs: Iterable[tuple[Any, Any, str]]
    if isinstance(given, list):
        pairs = ((a, b, f"{path}[...]") for a, b in zip(given, kept, strict=True))
    elif isinstance(given, dict):
        known = kept if isinstance(kept, Mapping) else _fields(kept)
        if given.keys() != known.keys():
            missing, unknown = sorted(set(known) - set(given)), sorted(set(given) - set(known))
            return (
                f"`{path[:200]}` lacks the fields {missing} and has the unknown fields "
                f"{str(unknown)[:200]}; expected {sorted(known)}"
            )
        pairs = ((given[name], known[name], f"{path}.{name}") for name in given)
    else:
        return None
    wrong = (_difference(*pair) for pair in pairs if isinstance(pair[0], dict | list))
    return next((each for each in wrong if each is not None), None)
