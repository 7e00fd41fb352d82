"""An atlas in a real JupyterLab, in a real browser: live, and its edit comes back to Python."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from atlas_browser import SOURCES, needs_browser
from small_study import NAMES, Small

import salve_plugin as salve
from salve_plugin.report.artifact_page import artifact_page

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.peer,
    needs_browser,
]
TITLE = "<script>alert(3)</script>"


@pytest.fixture(scope="module")
def folders(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study's atlas and an artifact's."""
    place = tmp_path_factory.mktemp("atlas")
    study = place / "a folder #1 100% <b>"
    salve.atlas(
        small.hooked, small.dictionary, small.acts, study,
        images=small.images, mapped=2, title=TITLE,
    )  # fmt: skip
    edit = salve.suppress(small.hooked, small.dictionary, latent=3, strength=6.5, rows=[3])
    artifact = salve.EditArtifact.of(small.hooked, edit, labels=NAMES)
    artifact_page(artifact, place / "artifact")
    return study, place / "artifact"


@pytest.fixture(scope="module")
def notebook(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = (
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'adapters')!r}]\n"
        "import salve_plugin as salve\n"
        f"shown = salve.atlas_widget({str(folders[0])!r})\n"
        f"other = salve.atlas_widget({str(folders[1])!r})",
        "shown",
        "shown",
        "other",
        "from pathlib import Path\nPath('recipe').write_bytes(shown.recipe)\n"
        "print(salve.Edit.from_recipe(shown.recipe))",
    )
    code: list[dict[str, Any]] = [
        {"cell_type": "code", "execution_count": None, "id": str(at), "metadata": {},
         "outputs": [], "source": cell}
        for at, cell in enumerate(cells)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path_factory.mktemp("notebooks") / "atlas.ipynb"
    path.write_text(json.dumps(
        {"cells": code, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    ))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def address(
    peer_python: Callable[..., Path], notebook: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where a JupyterLab of its own shows the notebook; no setting of the user is read."""
    python = peer_python("jupyterlab", "jupyterlab", shared=True)
    home = tmp_path_factory.mktemp("jupyter")
    places = {name: str(home / name.lower()) for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    environment = {
        **os.environ, **{f"JUPYTER_{name}": place for name, place in places.items()},
        # The widgets' own extensions are installed beside anywidget, in our environment.
        "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    options = {
        "ServerApp.token": "only-a-test", "ServerApp.root_dir": notebook.parent,
        "ServerApp.port": 0, "ServerApp.ip": "localhost", "LabApp.expose_app_in_browser": True,
        "LabApp.news_url": None,
    }  # fmt: skip
    command = [str(python), "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield f"{_url(server, home / 'runtime_dir')}lab/tree/{notebook.name}?token=only-a-test"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        finally:
            server.kill()


def _url(server: subprocess.Popen[bytes], runtime: Path) -> str:
    for _ in range(600):
        for file in runtime.glob("jpserver-*.json"):
            try:
                return str(json.loads(file.read_text())["url"])
            except ValueError:
                pass  # still being written
        assert server.poll() is None, (runtime.parent / "log").read_text()[-3000:]
        time.sleep(0.1)
    raise AssertionError((runtime.parent / "log").read_text()[-3000:])


@pytest.fixture(scope="module")
def seen(address: str, folders: tuple[Path, Path], notebook: Path) -> dict[str, Any]:
    script = SOURCES / "browser" / "notebook.mjs"
    page = (folders[0] / "index.html").as_uri()
    done = subprocess.run(
        ["node", str(script), address, page, str(notebook.parent)],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_edit_on_the_bench_is_in_python(
    seen: dict[str, Any], small: Small, notebook: Path
) -> None:
    latents = [int(text.removeprefix("latent ").removesuffix("×")) for text in seen["latents"]]
    assert len(latents) == 2
    assert seen["alpha"] > 0
    edit = salve.suppress(
        small.hooked, small.dictionary, latent=latents, strength=float(seen["alpha"]), rows=[6]
    )
    recipe = (notebook.parent / "recipe").read_bytes()
    assert salve.Edit.from_recipe(recipe) == edit
    assert [Path(file).read_bytes() for file in seen["files"]] == [recipe, recipe]
    assert edit.digest[:12] in seen["said"][0]


def test_nothing_is_said_on_the_console_and_nothing_is_asked_for_elsewhere(
    seen: dict[str, Any],
) -> None:
    assert seen["faults"] == []
    assert seen["elsewhere"] == []


def test_outputs_do_not_disturb_each_other_or_the_notebook(seen: dict[str, Any]) -> None:
    assert seen["titles"] == [TITLE, TITLE, "suppress latent 3"]
    assert seen["other"] == [TITLE, "suppress latent 3"]
    assert seen["before"] == seen["after"]
    assert seen["cells"] == seen["left"] == 5
    assert seen["cleared"] == [False, 0]
    assert seen["again"] == TITLE


def test_names_are_text(seen: dict[str, Any]) -> None:
    # A browser shows the line separator as white space.
    assert [" ".join(name.split()) for name in seen["names"]] == [
        " ".join(name.split()) for name in NAMES
    ]
