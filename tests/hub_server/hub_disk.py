"""Files that are there whole or not at all: the process may die at any line."""

import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{uuid.uuid4().hex}")
    written.write_bytes(data)
    os.replace(written, path)
