"""A card's metadata: what people wrote stays in their words, whatever else is written."""

import pytest
import yaml

from salve_plugin.store.card import Card, read_metadata
from salve_plugin.store.card_yaml import parsed

OURS = Card({"library_name": "salve_plugin", "tags": ["salve_plugin"]}, "Ours\n")
ADDED = "library_name: salve_plugin\ntags:\n- salve_plugin\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "theirs",
    [
        "language: no",
        "language: [no, en]  # two of them",
        "version: 1.10",
        "number: 010\ntime: 12:30:45\nmany: 1_000\nhex: 0x1F",
        "when: 2024-05-01T10:00:00Z",
        "# ours are below\nlicense: 'mit'\n# the last word",
        "note: |\n  two\n  lines",
        "note: >+\n  a paragraph\n\n",
        'key with spaces: "\\u00e9"',
        "same: 1\nsame: 2",
        "one: &one [1]\ntwo: *one",
        "none: .nan",
    ],
)
def test_entries_that_stay_are_not_written_anew(theirs: str, end: str) -> None:
    there = theirs.replace("\n", end)
    card = f"---{end}{there}{end}---{end}My words"
    kept = OURS.over(card.encode()).decode()
    block, body = kept.split(f"{end}---{end}")
    assert block == f"---{end}{there}{end}{ADDED.replace(chr(10), end)}".removesuffix(end)
    assert body == "My words"


def test_an_entry_that_changes_is_the_only_one() -> None:
    card = (
        b"---\nversion: 1.10\n# all of them\ntags: [no, mine] # short\n# and\n# more\n"
        b"language: no\n---\nMy words"
    )
    assert OURS.over(card).decode() == (
        "---\nversion: 1.10\n# all of them\ntags:\n- 'no'\n- mine\n- salve_plugin\n# and\n# more\n"
        "language: no\nlibrary_name: salve_plugin\n---\nMy words"
    )


@pytest.mark.parametrize(
    "theirs", ["{a: 1, b: [2]}", "<<: {a: 1}\nb: 2", "  a: 1\n  b: 2", "# none"]
)
def test_other_layouts_say_the_same_afterwards(theirs: str) -> None:
    card = f"---\n{theirs}\n---\nMy words".encode()
    kept = OURS.over(card)
    assert read_metadata(kept) == {**read_metadata(card), **OURS.metadata}
    assert OURS.over(kept) == kept


def test_an_anchor_that_goes_takes_nothing_with_it() -> None:
    old = Card({"library_name": "salve_plugin", "tags": ["old"], "base_model": "me/it"}, "Ours\n")
    card = b"---\nbase_model: &it me/it\nmine: *it\n---\nMy words"
    assert read_metadata(OURS.over(card, old)) == {**OURS.metadata, "mine": "me/it"}


def test_references_to_references_end() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    theirs = "\n".join([*lines, "round: &round [*round]"])
    card = f"---\n{theirs}\n---\nMy words".encode()
    assert OURS.over(card) == f"---\n{theirs}\n{ADDED}---\nMy words".encode()


def test_only_true_and_false_are_truth_values() -> None:
    words = ("yes", "No", "on", "OFF", "y", "n")
    assert parsed("\n".join(f"{word}: {word}" for word in words)) == {word: word for word in words}
    assert parsed("a: true\nb: False\nc: 3\nd: null") == {"a": True, "b": False, "c": 3, "d": None}
    assert parsed("") == {}
    assert yaml.safe_load("a: no") == {"a": False}  # as before for everybody else
