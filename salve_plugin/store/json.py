"""One way to write a JSON value, and a strict way to read it.

The canonical form, which digests are taken of, is what `json.dumps` gives with sorted keys, without
spaces, as UTF-8, without NaN. Files hold the same with an indent of two, for people.
"""

import json
import math
from collections import Counter
from typing import NoReturn

from salve_plugin.errors import ArtifactError, InputError

MAX_DEPTH = 16
"""Levels of nesting in a JSON file; ours uses six."""
MAX_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader keeps exact."""

MAX_VALUES = 400_000
"""Values in a JSON file, brackets and commas in its texts included; 21 000 classes need 300 000. In
Python a value takes up to thirty times the bytes that it has in the file."""
MAX_DIGITS = 40
"""Letters of a number; ours have up to 25."""

Json = dict[str, object]


def dump(value: object) -> bytes:
    """Return the canonical form of a value that has passed `check_json` before.

    >>> dump({"b": 1, "a": [0.5, "é"]}).decode()
    '{"a":[0.5,"é"],"b":1}'
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def readable_json(value: object) -> bytes:
    """Return the canonical form laid out for people: one entry a line, a newline at the end.

    Raises:
        InputError: as for `check_json`.
    """
    check_json(value)
    # Another layout of the same values: for a digest they are dumped without it.
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def check_json(value: object) -> None:
    """Raise unless `value` is a tree of plain JSON values with exact numbers.

    Raises:
        InputError: if the value holds NaN, infinity, an integer beyond 2^53 - 1, a lone surrogate,
            a key that is not a string, or anything else that JSON has no exact form for.
    """
    try:
        _check_value(value, (), 0)
    except UnicodeEncodeError as error:
        raise InputError(f"not a plain JSON value: {error}") from error


def parse_json(data: bytes, name: str, *, max_bytes: int) -> Json:
    """Read a JSON object and insist on all that `json.loads` overlooks.

    Args:
        data: the file's bytes.
        name: what to call the file in messages.
        max_bytes: the longest file accepted.

    Raises:
        ArtifactError: if the bytes or the values are too many, not UTF-8, not JSON, nested too
            deep, or hold a repeated key, NaN, infinity or an integer beyond 2^53 - 1.
    """
    if len(data) > max_bytes:
        raise ArtifactError(
            f"{name} has {len(data)} bytes, more than the {max_bytes} that are read; "
            "salve_plugin writes no such file"
        )
    # Counted in the bytes, which costs nothing: once parsed, the memory would be taken already.
    values = sum(map(data.count, (b"[", b"{", b",")))
    if values > MAX_VALUES:
        raise ArtifactError(
            f"{name} holds {values} values, more than the {MAX_VALUES} that are read; "
            "salve_plugin writes no such file"
        )
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_repeats,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_exact_integer,
        )
        # The parser lets through lone surrogates, and nesting as deep as Python's stack.
        check_json(value)
    except RecursionError as error:
        raise ArtifactError(f"{name} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise ArtifactError(f"{name} is not valid: {error}; it is corrupt or truncated") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{name} holds {shortened(value)}; expected a JSON object")
    return value


def _check_value(value: object, path: tuple[object, ...], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"{place_of(path)} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # a lone surrogate has no UTF-8 form; UnicodeEncodeError
    # Before the integers: to Python a truth value is one.
    elif value is None or isinstance(value, bool):
        return
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise InputError(f"{place_of(path)} is an integer beyond 2^53 - 1")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{place_of(path)} is {value}, which JSON does not have")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(item, (*path, index), depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{place_of(path)} has the key {key!r}; keys must be strings")
            _check_value(key, path, depth)
            _check_value(item, (*path, key), depth + 1)
    else:
        kind = type(value).__name__
        raise InputError(f"{place_of(path)} is a {kind}, which JSON cannot hold exactly")


def place_of(path: tuple[object, ...]) -> str:
    """Return how messages name a place in a JSON value, such as `$['edit']['rows'][0]`."""
    return "$" + "".join(f"[{shortened(step)}]" for step in path)


def _object_without_repeats(pairs: list[tuple[str, object]]) -> Json:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the keys {shortened(repeated)} occur twice in one object")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is not JSON")


def _finite_float(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {text[:MAX_DIGITS]}... has too many digits")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _exact_integer(text: str) -> int:
    # Checked before int(): long digit strings cost quadratic time.
    if len(text) > len(str(MAX_INTEGER)) + 1:
        raise ValueError(f"the integer {text[:40]}... is beyond 2^53 - 1")
    return int(text)


def shortened(value: object, length: int = 80) -> str:
    """Return a value for messages: in at most so many letters, none that a terminal obeys."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
