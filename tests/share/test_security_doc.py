"""docs/security.md: its numbers are the code's, and the tests that it names exist."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
MODULES = (
    "share.artifact",
    "share.pictures",
    "store.card",
    "store.json",
    "store.seal",
    "store.tensors",
)


def test_every_limit_that_is_stated_is_the_codes() -> None:
    stated = re.findall(r"^\| `(MAX_[A-Z_]+)` \| ([0-9]+) \|", TEXT, re.M)
    assert len(stated) == 12
    modules = [import_module(f"salve_plugin.{name}") for name in MODULES]
    for name, value in stated:
        assert {getattr(module, name, int(value)) for module in modules} == {int(value)}
        assert any(hasattr(module, name) for module in modules), name


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(tests/[^`\s]+::\w+)`", TEXT))))
def test_every_test_that_is_named_exists(reference: str) -> None:
    file, name = reference.split("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
