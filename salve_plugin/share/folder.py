"""Files of an artifact's folder: each read once without following links, all written or none."""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from salve_plugin.errors import ArtifactError, MissingFileError, WriteError
from salve_plugin.files import sync_file, sync_folder, write_atomically

Reader = Callable[[str, int], bytes]
"""Returns the bytes of a named file, refusing more than the given number of them."""


def sha256_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def folder_reader(folder: Path) -> Reader:
    """Return a reader of the plain files that lie directly in `folder`.

    The reader's callers pass names from a whitelist only. A file is opened once and never through
    a link, so what is checked is what is used.

    Raises:
        ArtifactError: (the reader) if the file is missing, a link, a folder or a device, longer
            than the limit, or cannot be read.
    """

    def read(name: str, limit: int) -> bytes:
        path = folder / name
        if path.is_symlink():
            raise ArtifactError(
                f"{path} is a link; links are never followed. Copy the folder with its links "
                "resolved (`cp -rL`) and read the copy"
            )
        return read_plain(path, limit)

    return read


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
        kind = MissingFileError if isinstance(error, FileNotFoundError) else ArtifactError
        raise kind(
            f"cannot read {path}: {error.strerror}; an artifact needs this file, get the "
            "folder again"
        ) from error
    try:
        return _read_plain(descriptor, path, limit)
    finally:
        os.close(descriptor)


def _read_plain(descriptor: int, path: Path, limit: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path} is not a plain file; get the artifact again")
    if status.st_size > limit:
        raise ArtifactError(
            f"{path} has {status.st_size} bytes, more than the {limit} that are read; this is no "
            "artifact of salve_plugin, or one for which the limits in salve_plugin.share were "
            "raised"
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
        contents: bytes, or a local file to copy, by file name; the last one is the one that makes
            the others valid.
        obsolete: names of our own files to remove once all is in place.

    Raises:
        WriteError: if the disk is full, the folder is not writable, or a name is taken by a
            folder; what was there is whole.
    """
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [name for name in contents if (folder / name).is_dir()]
        if taken:
            raise WriteError(f"cannot write {folder}: {taken} are folders; move them away")
        staging = Path(tempfile.mkdtemp(prefix=".salve-", dir=folder))
        for name, data in contents.items():
            if isinstance(data, Path):
                shutil.copyfile(data, staging / name)
                sync_file(staging / name)
            else:
                write_atomically(staging / name, data)
        _move_all(staging, folder, list(contents))
        for name in obsolete:
            with suppress(OSError):
                (folder / name).unlink()
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"cannot write the artifact to {folder}: {error.strerror or error}; what was there "
            "is unchanged. Free some space or choose another folder, then repeat the call"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _move_all(staging: Path, folder: Path, names: list[str]) -> None:
    """Rename the staged files into the folder; on any error put back what was replaced."""
    kept = staging / "replaced"
    kept.mkdir()
    for name in names:
        if os.path.lexists(folder / name):
            _second_name(folder / name, kept / name)
    try:
        for name in names:
            if name == names[-1]:
                sync_folder(folder)
            os.replace(staging / name, folder / name)
    except BaseException:
        for name in names:
            if os.path.lexists(kept / name):
                os.replace(kept / name, folder / name)
            elif not os.path.lexists(staging / name):
                (folder / name).unlink(missing_ok=True)
        raise
    sync_folder(folder)


def _second_name(path: Path, name: Path) -> None:
    """Keep a file under another name too: taking back is then one rename."""
    try:
        os.link(path, name, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(path, name, follow_symlinks=False)
