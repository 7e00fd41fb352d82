"""Files: each read once and without following links, each written whole or not at all."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from salve_plugin.errors import ArtifactError, InputError, MissingFileError, WriteError
from salve_plugin.store.json import shortened
from salve_plugin.store.owner import Owner, dead_entries

FileReader = Callable[[str, int], bytes]
"""Returns the bytes of a named file, refusing more than the given number of them."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a part.

    What writes of ended processes left in the folder is removed.

    Raises:
        WriteError: if the disk is full, the folder is not writable, or something else than a file
            is in the place, a device or a pipe for example; `path` is as it was.
    """
    temporary = None
    try:
        check_regular(path)
        for left in dead_entries(path.parent):
            if left.is_file() and not left.is_symlink():
                left.unlink(missing_ok=True)
        # In the same folder, since a rename is atomic within one file system only. O_EXCL follows
        # no link that lies there under that name.
        temporary = path.parent / f".salve-{Owner.this().tag()}"
        # The user's umask is left to the system: it cannot be read without being set, for all
        # threads.
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # The bytes are on the disk before the name leads to them: else a power cut could leave
            # the name on an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        # The new name is an entry of the folder, which has to reach the disk, too.
        sync_folder(path.parent)
    except WriteError:
        raise
    except (OSError, ValueError) as error:
        raise no_such_write(path, error, len(data)) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def no_such_write(path: Path, error: Exception, size: int | None = None) -> WriteError:
    """Return the error for a file or folder that cannot be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    shown = shortened(str(path), 300)
    what = f"{shown} ({size} bytes)" if size is not None else f"to {shown}"
    return WriteError(
        f"cannot write {what}: {reason}; what was there is unchanged. Free some space or choose "
        "another folder, then repeat the call"
    )


def check_regular(path: Path) -> None:
    """Raise WriteError if something else than a file, or a link to one, is in a place.

    A rename would put a file where a device, a pipe or a folder is, for all who use it.
    """
    for status in (os.lstat, os.stat):  # the link itself may be replaced, what it leads to not
        try:
            mode = status(path).st_mode
        except FileNotFoundError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            kind = next(name for name, tells in _KINDS.items() if tells(mode))
            raise WriteError(
                f"{path} is {kind}, not a file, and would be replaced by one; give the name of a "
                "file"
            )
    # As containers mount single files: renaming over one fails, after all the work was done.
    if path.is_file() and os.path.ismount(path):
        raise WriteError(f"{path} is a mount point, which no file can replace; give another name")


_KINDS: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a named pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: True,
}
_BINARY = getattr(os, "O_BINARY", 0)


def usable(path: str | os.PathLike[str]) -> Path:
    """Return a path that the system can have.

    Raises:
        InputError: if it is no path, has a NUL or another character that no file name has, a name
            in it is too long, or it leads through a folder that this user may not enter.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"{shortened(path, 300)} is a {type(path).__name__}; a path was expected: give a str "
            "or a pathlib.Path"
        )
    if not os.fspath(path):
        # `Path` takes it for the current folder, which nobody has named: a variable was not set.
        raise InputError('"" is no path; give one, "." for the current folder')
    try:
        # Asked of the system, since what a name may be is its own affair.
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(
            f"{shortened(ascii(os.fspath(path)), 300)} is no path that can be used: {reason}; "
            "choose another one"
        ) from error
    return Path(path)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_on_the_way(folder: Path, name: str) -> Path | None:
    """Return the first link among a file and the subfolders that lead to it; None without one."""
    # Not `Path.is_symlink`, which has an error of its own for a folder that cannot be entered.
    return next((place for place in places(folder, name) if os.path.islink(place)), None)


def places(folder: Path, name: str) -> list[Path]:
    """Return the subfolders that lead to a file, outermost first, and the file itself."""
    parts = name.split("/")
    return [folder.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]


def read_plain(path: Path, limit: int) -> bytes:
    """Return the bytes of a plain file, which is opened once and not through a link.

    Raises:
        ArtifactError: if it is missing, a link, a folder or a device, longer than `limit` bytes,
            or cannot be read.
    """
    # O_NOFOLLOW closes the gap after a check; O_NONBLOCK keeps a named pipe from waiting.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        kind = MissingFileError if missing else ArtifactError
        raise kind(
            f"cannot read {path}: {error.strerror}; check the path, and that the folder is complete"
        ) from error
    try:
        return _read_plain(descriptor, path, limit)
    finally:
        os.close(descriptor)


def _read_plain(descriptor: int, path: Path, limit: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path} is not a plain file; only plain files are read")
    # Asked of the open file, not of its name: in between another file could have taken the name.
    if status.st_size > limit:
        raise ArtifactError(
            f"{path} has {status.st_size} bytes, more than the {limit} that it should have or "
            "that are read at most; it was changed or salve_plugin did not write it"
        )
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # No more than it had when that was checked, even if it grows meanwhile.
            return file.read(status.st_size)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
