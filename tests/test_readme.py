"""The README's Python example runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_example_runs_and_suppresses_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    found = re.search(r"'3': ([\d.]+)% -> ([\d.]+)%", printed)
    assert found is not None
    assert float(found[1]) > 90
    assert float(found[2]) <= 5
    assert (tmp_path / "no-threes" / "edit_config.json").is_file()
