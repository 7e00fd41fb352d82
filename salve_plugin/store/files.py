"""Files: each read once and without following links, each written whole or not at all."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from salve_plugin.errors import ArtifactError, MissingFileError, WriteError

FileReader = Callable[[str, int], bytes]
"""Returns the bytes of a named file, refusing more than the given number of them."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a part.

    Raises:
        WriteError: if the disk is full or the folder is not writable; `path` is as it was.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; the result gets what the user's umask would give.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(
            f"cannot write {path} ({len(data)} bytes): {error.strerror or error}; free some space "
            "or choose another folder, then repeat the call"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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


def folder_reader(folder: Path) -> FileReader:
    """Return a reader of the plain files in `folder`.

    The reader's callers pass names from a whitelist only, a file of a subfolder as "sub/file". A
    file is opened once and never through a link, so what is checked is what is used.

    Raises:
        ArtifactError: (the reader) if the file is missing, a link, a folder or a device, longer
            than the limit, or cannot be read.
    """

    def read(name: str, limit: int) -> bytes:
        path = folder / name
        link = link_on_the_way(folder, name)
        if link is not None:
            raise ArtifactError(
                f"{link} is a link; links are never followed. Copy the folder with its links "
                "resolved (`cp -rL`) and read the copy"
            )
        return read_plain(path, limit)

    return read


def link_on_the_way(folder: Path, name: str) -> Path | None:
    """Return the first link among a file and the subfolders that lead to it; None without one."""
    return next((place for place in _places(folder, name) if place.is_symlink()), None)


def _places(folder: Path, name: str) -> list[Path]:
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
    if status.st_size > limit:
        raise ArtifactError(
            f"{path} has {status.st_size} bytes, more than the {limit} that it should have or "
            "that are read at most; it was changed or salve_plugin did not write it"
        )
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error


def replace_files(
    folder: Path, contents: Mapping[str, bytes | Path], *, obsolete: Collection[str] = ()
) -> None:
    """Put files into a folder in the given order, or leave everything as it was.

    All files are first written and synced to a hidden folder inside `folder` (a full disk ends
    here), then renamed into place one after the other. When a rename fails, those before it are
    taken back. When the process is killed between two renames, the last file, the manifest, is
    still the old one and its digests expose the mixture.

    Args:
        folder: created if missing, parents too. Files that are not named here are not touched.
        contents: bytes, or a local file to copy, by file name, "sub/file" in subfolders; the last
            one is the one that makes the others valid.
        obsolete: names of our own files to remove once all is in place; subfolders that are empty
            then are removed too.

    Raises:
        WriteError: if the disk is full, the folder is not writable, or a name is taken by a
            folder, or a subfolder's by a file or link; what was there is whole.
    """
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_free(folder, contents)
        staging = Path(tempfile.mkdtemp(prefix=".salve-", dir=folder))
        new = staging / "new"
        for name, data in contents.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, new / name)
                sync_file(new / name)
            else:
                write_atomically(new / name, data)
        _move_all(new, staging / "replaced", folder, list(contents))
        for name in obsolete:
            _remove(folder, name)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"cannot write to {folder}: {error.strerror or error}; what was there "
            "is unchanged. Free some space or choose another folder, then repeat the call"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _check_free(folder: Path, names: Collection[str]) -> None:
    taken = [name for name in names if (folder / name).is_dir()]
    if taken:
        raise WriteError(f"cannot write {folder}: {taken} are folders; move them away")
    subfolders = {place for name in names for place in _places(folder, name)[:-1]}
    taken = sorted(
        place.name
        for place in subfolders
        if place.is_symlink() or (place.exists() and not place.is_dir())
    )
    if taken:
        raise WriteError(f"cannot write {folder}: {taken} are files or links; move them away")


def _move_all(new: Path, kept: Path, folder: Path, names: list[str]) -> None:
    """Rename the staged files into the folder; on any error put back what was replaced."""
    for name in names:
        if os.path.lexists(folder / name):
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            _second_name(folder / name, kept / name)
    made: list[Path] = []
    try:
        for name in names:
            for subfolder in _places(folder, name)[:-1]:
                if not subfolder.exists():
                    subfolder.mkdir()
                    made.append(subfolder)
            if name == names[-1]:
                for place in {(folder / each).parent for each in names} | {folder}:
                    sync_folder(place)
            os.replace(new / name, folder / name)
    except BaseException:
        for name in names:
            if os.path.lexists(kept / name):
                os.replace(kept / name, folder / name)
            elif not os.path.lexists(new / name):
                (folder / name).unlink(missing_ok=True)
        for subfolder in reversed(made):
            with suppress(OSError):
                subfolder.rmdir()
        raise
    sync_folder((folder / names[-1]).parent)


def _remove(folder: Path, name: str) -> None:
    """Remove a file and the subfolders that are empty without it."""
    with suppress(OSError):
        (folder / name).unlink()
        for subfolder in reversed(_places(folder, name)[:-1]):
            subfolder.rmdir()


def _second_name(path: Path, name: Path) -> None:
    """Keep a file under another name too: taking back is then one rename."""
    try:
        os.link(path, name, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(path, name, follow_symlinks=False)
