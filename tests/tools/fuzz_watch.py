"""Sees what Python does while an artifact is read: files, imports, code, processes, network."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORBIDDEN = (
    "compile", "exec", "import", "marshal.", "pickle.", "code.__new__", "os.chdir", "os.chmod",
    "os.exec", "os.fork", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename",
    "os.rmdir", "os.symlink", "os.system", "os.truncate", "os.utime", "shutil.", "socket.",
    "subprocess.", "tempfile.", "urllib.", "ctypes.dlopen", "webbrowser.", "sys.setprofile",
)  # fmt: skip
"""Beginnings of the names of audit events that reading must not cause."""

_seen: list[str] | None = None
_folders: frozenset[Path] = frozenset()


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        known = isinstance(path, int)  # a descriptor that was opened under a name before
        if writes or not (known or Path(str(path)).parent in _folders):
            _seen.append(f"open {path!r}")
    elif event.startswith(FORBIDDEN):
        _seen.append(f"{event} {str(arguments)[:200]}")


sys.addaudithook(_hook)  # for good, there is no way to remove one


@contextmanager
def watched(*folders: Path) -> Iterator[None]:
    """Raise at the end if anything forbidden was done inside.

    Args:
        *folders: whose files may be opened for reading; none allows no file at all.

    Raises:
        AssertionError: says what was done.
    """
    global _seen, _folders
    modules = set(sys.modules)
    seen: list[str] = []
    _seen, _folders = seen, frozenset(folders)
    try:
        yield
    finally:
        _seen = None
    assert not seen, f"reading did {seen[:5]}"
    assert set(sys.modules) == modules, f"reading imported {set(sys.modules) - modules}"
