"""The notebooks of the documentation run anew as they stand, and were executed when committed."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient, of the extra `dev`")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of the extra `dev`")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def kinds(cell: Any) -> list[tuple[str, list[str]]]:
    """Return of what kind a cell's outputs are, pictures and text, in order."""
    outputs = [
        (output.output_type, sorted({*output.get("data", ())} - {"image/jpeg"}))
        for output in cell.outputs
        if output.get("name") != "stderr"  # warnings depend on what else is installed
    ]
    # How many pieces printed text comes in depends on how fast it is printed.
    return [
        kind for kind, group in groupby(outputs) for _ in ([0] if kind[0] == "stream" else group)
    ]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["captum", "quickstart", "shortcut"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_from_top_to_bottom(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert "/home/" not in text
    assert "/tmp/" not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_anew_and_shows_the_same_kinds_of_things(
    path: Path, tmp_path: Path
) -> None:
    stored = nbformat.read(path, 4)
    executed = nbformat.read(path, 4)
    client = nbclient.NotebookClient(executed, timeout=600, kernel_name="python3")
    client.execute(cwd=str(tmp_path))  # an error of a cell is raised
    for before, after in zip(stored.cells, executed.cells, strict=True):
        if before.cell_type == "code":
            assert kinds(after) == kinds(before)
