"""The small part of JSON Schema that the format needs, read from the schema that is shipped.

`edit_config.schema.json`, and `dictionary.schema.json` of dictionaries, are both the documentation
of the format and what is enforced. Any validator for draft 2020-12 may be used in place of this
module; it exists so that reading an artifact needs no further package. A schema that uses another
keyword is refused, never ignored.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from salve_plugin.errors import ArtifactError
from salve_plugin.share.canonical import Json, shortened

Path = tuple[object, ...]
Check = Callable[[Any, Path], None]
"""Raises unless the value at the path is as it should be."""

SCHEMA_NAME = "edit_config.schema.json"

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description"}
_HANDLED = {
    "$ref", "type", "enum", "const", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "items", "minItems", "maxItems", "uniqueItems", "properties", "required",
    "additionalProperties", "propertyNames", "minProperties",
    "maxProperties",
}  # fmt: skip


@cache
def config_schema(name: str = SCHEMA_NAME) -> Json:
    """Return a JSON Schema that is shipped, by default that of `edit_config.json`."""
    text = files("salve_plugin.share").joinpath(name).read_text(encoding="utf-8")
    schema: Json = json.loads(text)
    return schema


def check_schema(value: object, schema: Json | str = SCHEMA_NAME) -> None:
    """Raise unless `value` is what the schema describes.

    Args:
        value: a JSON value.
        schema: one of our own, or the name of a shipped one.

    Raises:
        ArtifactError: names the place (`$.edit.strength`), what is there and what was expected.
    """
    check = _shipped(schema) if isinstance(schema, str) else _compiled(schema, schema)
    check(value, ())


@cache
def _shipped(name: str) -> Check:
    schema = config_schema(name)
    return _compiled(schema, schema)


def _compiled(schema: Json, root: Json) -> Check:
    """Return the function that checks a value against a schema; keywords are looked up once."""
    unknown = set(schema) - _HANDLED - _ANNOTATIONS
    assert not unknown, f"schema keywords {sorted(unknown)} are not implemented"
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        return _compiled(_mapping(_mapping(root["$defs"])[name]), root)
    general = [_type_check(schema)] if "type" in schema else []
    if "const" in schema or "enum" in schema:
        general.append(_choice_check(schema))
    special: dict[type, Check] = {
        str: _string_check(schema),
        int: _range_check(schema, "minimum", "maximum"),
        float: _range_check(schema, "minimum", "maximum"),
        list: _array_check(schema, root),
        dict: _object_check(schema, root),
    }

    def check(value: object, path: Path) -> None:
        for test in general:
            test(value, path)
        if type(value) in special:
            special[type(value)](value, path)

    return check


def _type_check(schema: Json) -> Check:
    names = schema["type"]
    allowed = [str(name) for name in (names if isinstance(names, list) else [names])]
    # Exact types: in JSON true is no number, in Python it is.
    types = {kind for name in allowed for kind in _TYPES[name]}

    def check(value: object, path: Path) -> None:
        if type(value) not in types:
            _refuse(path, value, "one of the types " + ", ".join(allowed))

    return check


def _choice_check(schema: Json) -> Check:
    choices = [schema["const"]] if "const" in schema else _sequence(schema["enum"])

    def check(value: object, path: Path) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            _refuse(path, value, f"one of {choices}")

    return check


def _string_check(schema: Json) -> Check:
    in_range = _range_check(schema, "minLength", "maxLength", "length")
    pattern = str(schema.get("pattern", ""))
    # In Python `$` also matches before a newline at the end, in JSON Schema it does not.
    search = re.compile(re.sub(r"\$$", r"\\Z", pattern)).search

    def check(value: Any, path: Path) -> None:
        in_range(len(value), path)
        if search(value) is None:
            _refuse(path, value, f"a string that matches {pattern}")

    return check


def _range_check(schema: Json, least: str, most: str, what: str = "value") -> Check:
    low, high = schema.get(least, -math.inf), schema.get(most, math.inf)
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)

    def check(value: Any, path: Path) -> None:
        if not low <= value <= high:
            _refuse(path, value, f"a {what} between {low} and {high}")

    return check


def _array_check(schema: Json, root: Json) -> Check:
    in_range = _range_check(schema, "minItems", "maxItems", "number of items")
    item_check = _compiled(_mapping(schema["items"]), root) if "items" in schema else None
    unique = bool(schema.get("uniqueItems"))

    def check(value: Any, path: Path) -> None:
        in_range(len(value), path)
        if item_check is not None:
            for index, item in enumerate(value):
                item_check(item, (*path, index))
        if unique and len(set(map(_key, value))) < len(value):
            _refuse(path, value, "items that differ from each other")

    return check


def _object_check(schema: Json, root: Json) -> Check:
    in_range = _range_check(schema, "minProperties", "maxProperties", "number of fields")
    fields = _mapping(schema.get("properties", {}))
    known = {name: _compiled(_mapping(field), root) for name, field in fields.items()}
    others, names = schema.get("additionalProperties", True), schema.get("propertyNames")
    other_check = _compiled(others, root) if isinstance(others, dict) else None
    name_check = None if names is None else _compiled(_mapping(names), root)
    required = _sequence(schema.get("required", []))

    def check(value: Any, path: Path) -> None:
        in_range(len(value), path)
        missing = [name for name in required if name not in value]
        extra = sorted(set(value) - set(known)) if others is False else []
        if missing or extra:
            raise ArtifactError(
                f"{_place(path)} lacks the fields {missing} and has the unknown fields "
                f"{shortened(extra[:5], 200)}; expected {sorted(known)}. Get the artifact again; "
                "if it is intact, it may need a newer salve_plugin"
            )
        for name, item in value.items():
            if name_check is not None:
                name_check(name, (*path, "(name of a field)"))
            field_check = known.get(name, other_check)
            if field_check is not None:
                field_check(item, (*path, name))

    return check


def _key(value: object) -> object:
    """Return what is equal for values that JSON holds to be equal, and can be hashed."""
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True)
    return isinstance(value, bool), value


def _mapping(value: object) -> Json:
    assert isinstance(value, dict)
    return value


def _sequence(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def _place(path: Path) -> str:
    return ".".join(["$", *map(str, path)])[:200]


def _refuse(path: Path, value: object, expected: str) -> None:
    raise ArtifactError(
        f"{_place(path)} is {shortened(value)}; expected {expected}. "
        "The artifact is corrupt or was not written by salve_plugin, get it again"
    )
