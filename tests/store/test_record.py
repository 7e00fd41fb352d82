"""Records: their fields as JSON and back, nothing lost, guessed or let in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jsonschema
import pytest
from msgspec import UNSET, Meta, UnsetType

from salve_plugin.errors import InputError
from salve_plugin.store.record import Index, Name, Notes, Record


@dataclass(frozen=True)
class Inner(Record):
    count: Index
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    maybe: int | UnsetType = UNSET


@dataclass(frozen=True)
class Outer(Record):
    inner: Mapping[Name, Inner]
    pair: tuple[int, int] | None = None
    notes: Notes | None = None

    def __post_init__(self) -> None:
        """Refuse one pair."""
        if self.pair == (0, 0):
            raise InputError("pair must not be (0, 0)")


def valid() -> dict[str, Any]:
    return {
        "inner": {"a": {"count": 1, "share": 1}, "b": {"count": 2, "share": 0.25, "maybe": 3}},
        "pair": [1, 2],
        "notes": {"anything": [None, {"x": 1}]},
    }


def test_fields_come_back_as_they_were_and_schema_and_types_agree() -> None:
    record = Outer.from_json(valid())
    assert record.inner["a"] == Inner(1, 1.0)
    assert record.pair == (1, 2)
    assert Outer.from_json(record.to_json()) == record
    assert record.to_json() == valid()
    jsonschema.Draft202012Validator(Outer.schema()).validate(valid())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("pair",), [0, 0], "must not be"),
        (("pair",), [1, 2, 3], "length 2"),
        (("inner", "a", "count"), True, "got `bool`"),
        (("inner", "a", "count"), 1.0, "got `float`"),
        (("inner", "a", "count"), 2**53, "<="),
        (("inner", "a", "share"), 1.5, r"at `\$\.inner\[\.\.\.\]\.share`"),
        (("inner", "a", "more"), 1, r"`\$\.inner\.a` .*unknown fields \['more'\]"),
        (("inner", ""), {"count": 1, "share": 1}, "at `key`"),
        (("inner",), [], "Expected `object`"),
    ],
)
def test_a_wrong_or_unknown_value_is_refused_with_its_place(
    path: tuple[str, ...], value: object, message: str
) -> None:
    given = valid()
    place = given
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(InputError, match=message):
        Outer.from_json(given)


@pytest.mark.parametrize("path", [("inner",), ("pair",), ("notes",), ("inner", "a", "share")])
def test_a_field_that_is_left_out_is_refused_even_if_it_has_a_default(
    path: tuple[str, ...],
) -> None:
    given = valid()
    place = given
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    with pytest.raises(InputError, match=path[-1]):
        Outer.from_json(given)
    assert not jsonschema.Draft202012Validator(Outer.schema()).is_valid(given)


def test_a_message_is_short_whatever_a_file_holds() -> None:
    given = {**valid(), "x" * 10_000: 1}
    with pytest.raises(InputError) as caught:
        Outer.from_json(given)
    assert len(str(caught.value)) < 1_000
