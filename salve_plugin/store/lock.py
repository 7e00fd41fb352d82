"""One job at a time writes into a folder; the others are told which."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from salve_plugin.errors import ArtifactError, FolderInUseError, WriteError
from salve_plugin.store.files import no_such_write, read_plain
from salve_plugin.store.owner import Owner

LOCK_FILE = ".salve-lock"
MAX_BYTES = 1000
UNWRITTEN_SECONDS = 10
"""After so long, a lock that names nobody is one whose process was killed before it could write."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other jobs from writing into a folder, which is made if missing.

    The lock is a file that names its owner. One whose owner has ended is taken over; one of a
    process on another machine has to be deleted by hand if that process was killed.

    Raises:
        FolderInUseError: if another process, or another thread of this one, writes there.
        WriteError: if the folder cannot be made or written.
    """
    made: list[Path] = []
    try:
        # One by one, to know which of them are ours to remove if nothing is written.
        for each in [*reversed(folder.parents), folder]:
            if not each.exists():
                each.mkdir(exist_ok=True)
                made.append(each)
        text = _take(folder)
    except (OSError, ValueError) as error:
        _remove_empty(made)
        if isinstance(error, WriteError):
            raise
        raise no_such_write(folder, error) from error
    try:
        yield
    except BaseException:
        _release(folder, text)
        _remove_empty(made)
        raise
    _release(folder, text)


def _take(folder: Path) -> bytes:
    """Write the lock and return what it says."""
    path = folder / LOCK_FILE
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    said = f"process {os.getpid()} on {platform.node()} since {since}"
    text = f"{Owner.this().tag()}\n{said}\n".encode()
    with _moment(folder):
        if os.path.lexists(path) and _is_stale(path):
            path.unlink()
        try:
            # Making the file is taking the lock: O_EXCL lets one of all processes do it, also where
            # `_moment` finds no flock.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError as error:
            raise FolderInUseError(
                f"{folder} is being written by {_said(path)}: wait until that job ends, or choose "
                f"another folder. If it no longer runs, delete {path}"
            ) from error
        try:
            os.write(descriptor, text)
        except OSError:  # a full disk
            path.unlink()
            raise
        finally:
            os.close(descriptor)
    return text


def _release(folder: Path, text: bytes) -> None:
    # A child that was forked meanwhile has the same lock in memory, but it is not the child's.
    path = folder / LOCK_FILE
    with suppress(OSError), _moment(folder):
        owner = Owner.of_tag(text.decode().partition("\n")[0])
        if (
            # Deleted by hand and taken by another job since, it is that job's.
            _lines(path) == text.decode().splitlines()
            and owner is not None
            and owner.pid == os.getpid()
        ):
            path.unlink()


def _is_stale(path: Path) -> bool:
    lines = _lines(path)
    if lines is None:
        return False
    owner = Owner.of_tag(lines[0]) if lines else None
    if owner is not None:
        return owner.is_dead()
    # An owner makes the file and writes its name a moment later.
    return not lines and time.time() - path.lstat().st_mtime > UNWRITTEN_SECONDS


def _said(path: Path) -> str:
    lines = _lines(path) or []
    return lines[1] if len(lines) > 1 else "another job"


def _lines(path: Path) -> list[str] | None:
    """Return the lines of a lock; None if it is no lock of ours, nor could be."""
    try:
        return read_plain(path, MAX_BYTES).decode(errors="replace").splitlines()
    except ArtifactError:
        return None


@contextmanager
def _moment(folder: Path) -> Iterator[None]:
    """Let one process at a time look at the lock and change it, where the system can do that.

    Between finding a lock stale and deleting it, another process could have done so and written
    its own; that one must not be deleted.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()
