"""The built documentation in a browser with the network off: nothing missing, nothing too wide."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        NODE is None or not (HERE / "node_modules").is_dir(),
        reason="needs node, and `npm ci` in tests/browser",
    ),
]


def node(*arguments: str | Path) -> str:
    """Return what a script of this folder prints."""
    command = [str(NODE), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE).stdout


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_documentation_carries_what_the_pinned_packages_have(tmp_path: Path) -> None:
    node("vendor.mjs", tmp_path / "vendor")
    carried = ROOT / "docs" / "assets" / "vendor"
    assert contents(carried) == contents(tmp_path / "vendor"), "run `make docs-assets`"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built documentation."""
    if find_spec("mkdocs") is None:
        pytest.skip("needs mkdocs, of the extra `docs`")
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_whole_without_a_network(built: Path, scheme: str) -> None:
    pages: list[dict[str, Any]] = json.loads(node("look.mjs", str(CHROMIUM), built, scheme))
    names = {page["page"] for page in pages}
    assert {"index.html", "validation.html", "notebooks/quickstart.html"} <= names
    assert sum(page["formulas"] for page in pages) > 50
    assert max(page["results"] for page in pages if page["page"] == "index.html") > 0
    for page in pages:
        name = page["page"]
        assert page["faults"] == [], name  # no request to a host, none that fails, no error
        assert page["rendered"] == page["formulas"], name
        assert page["raw"] == [], name
        assert page["too_wide"] == [], name
        assert page["without_text"] == page["not_shown"] == [], name
        assert {"Inter Variable", "Inconsolata Variable"} <= set(page["fonts"]), name
        assert (page["brightness"] > 0.5) == (scheme == "light"), name
