"""No public value fills the screen when it is looked at."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import salve_plugin as salve
from salve_plugin.faces.one_line import MOST, brief, listed, one_line, shortened

NO_VALUES = {"Adapter", "Learner", "SalveError", "Where", "How"}
"""Bases and keyword arguments: nobody holds one of them."""

SMALL = {
    "Progress", "Origin", "Pushed", "Reference", "Probed", "Exactness",
    "MemberOverlap", "ConceptScores",
}  # fmt: skip
"""Of a few numbers and names each; it takes a Hub, two networks or random images to have one."""

PUBLIC = {
    name: getattr(salve, name)
    for name in salve.__all__
    if inspect.isclass(getattr(salve, name)) and name not in NO_VALUES
}


def values_in(value: object, seen: set[int]) -> Iterator[object]:
    """Yield a value and all that its attributes, items and elements hold."""
    if id(value) in seen or isinstance(value, (str, bytes, torch.Tensor)):
        return
    seen.add(id(value))
    yield value
    inside: list[Any] = []
    if isinstance(value, SimpleNamespace):
        inside = list(vars(value).values())
    elif is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple)):
        inside = list(value)
    elif isinstance(value, salve.HookedModel):
        inside = list(value.sites.values())
    for part in inside:
        yield from values_in(part, seen)


@pytest.fixture(scope="module")
def values(study: SimpleNamespace) -> list[object]:
    return list(values_in(study, set()))


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_value_has_a_long_repr(name: str, values: list[object]) -> None:
    own = [value for value in values if type(value).__name__ in (name, f"Lens{name}")]
    for value in own:
        assert 0 < len(repr(value)) <= MOST
        assert repr(value).isprintable()
    # What the study has not made has the repr that is bounded for every value, or is small.
    bounded = PUBLIC[name].__repr__ is one_line
    inherited = any(issubclass(type(value), PUBLIC[name]) for value in values)
    assert own or bounded or inherited or name in SMALL


@dataclass
class Held:
    value: object
    missing: object = None

    __repr__ = one_line


@settings(max_examples=25, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.text(), st.floats(), st.integers(), st.binary()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=40,
    )
)
def test_the_line_is_short_and_printable_whatever_is_held(value: object) -> None:
    for text in (repr(Held(value)), repr(Held(torch.zeros(3), Held(value)))):
        assert len(text) <= MOST
        assert text.isprintable()


def test_sizes_stand_for_what_is_large() -> None:
    assert brief(torch.zeros(2, 3)) == "float32[2, 3]"
    assert brief(torch.tensor(0.5)) == "0.5"
    assert brief({number: torch.zeros(100) for number in range(30)}) == "<dict of 30>"
    assert brief((1, 2)) == "(1, 2)"
    assert listed(range(3)) == "[0, 1, 2]"
    assert repr(Held(1)) == "Held(value=1)"
    assert shortened("a\n" + "b" * 1000) == "a\\n" + "b" * (MOST - 4) + "…"


def test_the_lines_say_what_matters(study: SimpleNamespace) -> None:
    assert "16 latents in 10 classes" in repr(study.features)
    assert f"{study.evaluation.overall:.1%}".replace("%", " %") in repr(study.evaluation)
    assert study.edit.digest[:12] in repr(study.edit)
    assert study.choice.chosen.method in repr(study.choice)
    assert "120 images" in repr(study.crit)
    for part in ("critical strengths of 120 images", "assessment", "pristine rows", "pictures"):
        assert part in repr(study.artifact)
