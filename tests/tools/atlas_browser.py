"""A real browser for the pages of the atlas, or why there is none."""

import os
import shutil
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "atlas"
CHROMIUM = os.environ.get("SALVE_CHROMIUM", "/usr/bin/chromium")
LACKING = [
    what
    for what, there in {
        "node (apt-get install nodejs npm)": shutil.which("node") is not None,
        f"{CHROMIUM} (apt-get install chromium)": Path(CHROMIUM).exists(),
        "atlas/node_modules (npm ci in atlas/)": (SOURCES / "node_modules" / "axe-core").exists(),
    }.items()
    if not there
]
needs_browser = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
