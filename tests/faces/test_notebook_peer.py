"""A real Jupyter kernel shows tables and figures, and its saved file has one line of progress."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "tests" / "fixtures" / "digits_resnet.safetensors"

CELLS = (
    f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "adapters")!r}]
from pathlib import Path
import salve_plugin as salve
from salve_plugin.demo import digits
_, test = digits.load_digits()
hooked = salve.attach(digits.load("resnet", Path({str(WEIGHTS)!r})))
""",
    "acts = salve.record(hooked, test.batches(64), classes=digits.CLASSES)",
    "sae = salve.fit(acts, 'l1', n_latents=16, steps=200, run=salve.Run(progress=True))",
    "salve.profile(sae, acts)",
    "salve.profile(sae, acts).figure()",
)

RUN = """
import sys, nbclient, nbformat
cells = [nbformat.v4.new_code_cell(cell) for cell in eval(sys.stdin.read())]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


@pytest.mark.peer
def test_a_saved_notebook(peer_python: Callable[..., Path], tmp_path: Path) -> None:
    python = peer_python("notebook", "nbclient", "nbformat", "ipykernel", shared=True)
    path = tmp_path / "saved.ipynb"
    subprocess.run(
        [str(python), "-c", RUN, str(path)], input=repr(CELLS), text=True, check=True, timeout=280
    )
    _, recorded, fitted, table, figure = (
        cell["outputs"] for cell in json.loads(path.read_text())["cells"]
    )

    def shown(outputs: list[dict[str, Any]]) -> dict[str, Any]:
        (output,) = outputs
        data: dict[str, Any] = output["data"]
        return data

    assert "".join(shown(recorded)["text/plain"]).startswith("recording batches 6 in")
    assert "200/200" in "".join(shown(fitted)["text/plain"])
    assert "<table" in "".join(shown(table)["text/html"])
    assert shown(figure)["image/png"]
