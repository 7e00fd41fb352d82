"""The canonical form of JSON, and digests over content."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.store.digest import content_digest
from salve_plugin.store.json import MAX_DEPTH, check_json, dump, parse_json, readable_json

LIMIT = 10_000


def canonical_json(value: object) -> bytes:
    check_json(value)
    return dump(value)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.é"), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.dictionaries(st.text("xyz"), plain_values, max_size=4))
def test_a_value_survives_writing_and_reading_and_has_one_form(value: dict[str, object]) -> None:
    data = canonical_json(value)
    assert data == canonical_json(dict(reversed(value.items())))
    read = parse_json(data, "file", max_bytes=100_000)
    assert canonical_json(read) == data
    assert read == value


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, 2**53, "\ud800", {1: 2}, (1, 2), torch.ones(1), {"a": [{"b": -math.inf}]}],
    ids=repr,
)
def test_what_json_cannot_hold_exactly_is_refused_when_writing(value: object) -> None:
    with pytest.raises(InputError):
        canonical_json(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(InputError, match="nested deeper"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1, "a": 1}', "occur twice"),
        ('{"b": {"a": 1, "a": 2}}', "occur twice"),
        ('{"a": 9007199254740992}', "beyond"),
        ('{"a": ' + "9" * 5000 + "}", "beyond"),
        ('{"a": "\\ud800"}', "not valid"),
        ('{"a": 1', "not valid"),
        ("", "not valid"),
        ("[1]", "expected a JSON object"),
        ('{"a": ' + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1) + "}", "nested deeper"),
        ('{"a": 1}' + " " * LIMIT, "more than"),
    ],
)
def test_doubtful_json_is_refused_with_its_reason(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        parse_json(text.encode(), "file", max_bytes=LIMIT)


def test_brackets_by_the_hundred_thousand_do_not_exhaust_the_stack() -> None:
    for text in ("[" * 200_000, '{"a":' * 200_000):
        with pytest.raises(ArtifactError):
            parse_json(text.encode(), "file", max_bytes=10_000_000)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ArtifactError, match="utf-8"):
        parse_json(b'{"a": "\xff"}', "file", max_bytes=LIMIT)


def test_the_digest_is_the_same_on_every_machine() -> None:
    # Recomputed by hand: SHA-256 over length-prefixed blocks.
    import hashlib
    import struct

    tensors = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([3], dtype=torch.int64)}
    blocks = [
        b'{"x":1}',
        canonical_json({"name": "a", "dtype": "int64", "shape": [1]}),
        struct.pack("<q", 3),
        canonical_json({"name": "b", "dtype": "float32", "shape": [1, 2]}),
        struct.pack("<2f", 1.0, 2.0),
    ]
    whole = b"".join(struct.pack("<Q", len(block)) + block for block in blocks)
    assert content_digest({"x": 1}, tensors) == hashlib.sha256(whole).hexdigest()


def test_the_digest_sees_name_dtype_shape_and_bytes() -> None:
    base = torch.tensor([1.0, 2.0])
    variants = [
        content_digest({}, {"a": base}),
        content_digest({}, {"b": base}),
        content_digest({}, {"a": base[None]}),
        content_digest({}, {"a": base.view(torch.int32)}),
        content_digest({}, {"a": torch.tensor([1.0, -2.0])}),
        content_digest({"x": None}, {"a": base}),
        content_digest({}, {}),
    ]
    assert len(set(variants)) == len(variants)


def test_the_digest_does_not_depend_on_memory_layout() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert content_digest({}, {"a": tensor}) == content_digest({}, {"a": tensor.T.contiguous().T})


def test_both_forms_are_json_with_sorted_keys() -> None:
    value = {"é": [1.5, None, True], "a": "x"}
    assert json.loads(canonical_json(value)) == json.loads(readable_json(value)) == value
    assert readable_json({"b": 1, "a": 2}) == b'{\n  "a": 2,\n  "b": 1\n}\n'
