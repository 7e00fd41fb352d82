"""Imports between the rooms of discover run one way: training -> learners -> kernels, recording."""

import re
from pathlib import Path

import pytest

DISCOVER = Path(__file__).parents[2] / "salve_plugin" / "discover"
BELOW = {"kernels": set[str](), "recording": set[str](), "learners": {"kernels", "recording"}}


@pytest.mark.parametrize("room", sorted(BELOW))
def test_a_room_imports_only_from_those_below_it(room: str) -> None:
    files = sorted((DISCOVER / room).glob("*.py"))
    # What is indented is for type checkers only.
    imports = [
        (file.name, module)
        for file in files
        for module in re.findall(r"^from salve_plugin\.discover\.(\w+)", file.read_text(), re.M)
    ]
    assert len(files) > 5
    assert [pair for pair in imports if pair[1] not in {room, *BELOW[room]}] == []
