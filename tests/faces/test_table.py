"""Tables say the same as text and as HTML, and obey nothing that a value says."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.errors import printable
from salve_plugin.faces.table import MOST_ROWS, Table

SHOWN = (
    "features", "choice", "crit", "searched", "evaluation", "decisions", "quality", "edit",
    "dictionary", "artifact", "bundle", "learners",
)  # fmt: skip


class Parts(HTMLParser):
    """Collects tags, attributes and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(html: str) -> Parts:
    parts = Parts()
    parts.feed(html)
    parts.close()
    return parts


TAGS = {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_html_have_the_same_words_and_numbers(name: str, study: SimpleNamespace) -> None:
    value = getattr(study, name)
    parts = parsed(value._repr_html_())
    assert parts.tags <= TAGS
    assert parts.attributes <= {"style"}
    words = " ".join(parts.texts).split()
    assert " ".join(sorted(words)) == " ".join(sorted(str(value).split()))
    assert len(words) > 10
    # No colour of our own: on a dark page black letters vanish, on a bright one white ones.
    styles = re.findall(r'style="([^"]*)"', value._repr_html_())
    assert not [style for style in styles if re.search(r"color:|background|#|rgb", style)]


def test_class_names_are_shown_and_never_obeyed(study: SimpleNamespace) -> None:
    html = study.features._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;0&#x27;)&lt;/script&gt;" in html
    assert "<script>alert('0')</script>" in str(study.features)


def test_the_tables_have_the_numbers_of_the_values(study: SimpleNamespace) -> None:
    rows = {row[0]: row for row in study.features.as_table().rows}
    assert rows["one & only"][2] == study.features.dominant(1)
    by_class = {row[0]: row for row in study.crit.as_table().rows}
    for entry in study.crit.summary():
        shown = by_class[study.crit.classes[entry.label]]
        assert shown[1] == entry.count
        assert list(shown[4:]) == list(entry.quantiles.values())
    accuracies = [row[2] for row in study.evaluation.as_table().rows]
    assert accuracies == [f"{100 * value:.1f} %" for value in study.evaluation.accuracy.tolist()]
    first, *others = study.choice.as_table().rows
    assert first[:2] == ("chosen", study.choice.chosen.method)
    assert len(others) == len(study.choice.tried) - 1
    unedited = replace(study.choice, chosen=replace(study.choice.chosen, method="no edit"))
    assert unedited.as_table().rows[0][:2] == ("chosen", "no edit")
    assert len(unedited.as_table().rows) == len(study.choice.tried) + 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.text(), st.floats() | st.integers(), st.text()), max_size=30),
    st.text(),
    st.lists(st.text(min_size=1), max_size=2),
)
def test_whatever_is_in_the_cells_the_html_is_of_our_tags_alone(
    rows: list[tuple[str, float, str]], title: str, notes: list[str]
) -> None:
    table = Table(title, ("<b>", "n", "c"), rows, tuple(notes))
    parts = parsed(table.html())
    assert parts.tags <= TAGS
    for name, _, _ in rows[:MOST_ROWS]:
        assert unescape(printable(name)) in unescape(table.html())
    more = f"and {len(rows) - MOST_ROWS} more"
    assert (more in table.text()) == (more in table.html()) == (len(rows) > MOST_ROWS)
    assert all(line.isprintable() for line in table.text().split("\n"))


def test_numbers_stand_at_the_right_below_each_other() -> None:
    text = Table("", ("name", "n"), [("a", 1.5), ("bcdef", 100), ("c", float("inf"))]).text()
    assert text.split("\n") == ["name     n", "a      1.5", "bcdef  100", "c        ∞"]
