"""The README's Python examples run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_example_runs_and_suppresses_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, concept = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    found = re.search(r"'3': ([\d.]+)% -> ([\d.]+)%", printed)
    assert found is not None
    assert float(found[1]) > 90
    assert float(found[2]) <= 5
    assert (tmp_path / "no-threes" / "edit_config.json").is_file()
    # The second example needs to be told which images have the concept: here the bold digits.
    ink = names["train"].images.mean((1, 2, 3))
    names["has"] = ink > ink.median()
    exec(compile(concept, "README.md", "exec"), names)
    assert "worst group" in capsys.readouterr().out
