"""Folders: several files put in place as one, by one job at a time, and mended after a kill."""

import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from salve_plugin.errors import WriteError
from salve_plugin.store.files import (
    check_regular,
    no_such_write,
    places,
    sync_file,
    sync_folder,
    usable,
    write_atomically,
)
from salve_plugin.store.lock import locked
from salve_plugin.store.owner import Owner, dead_entries
from salve_plugin.store.place import Existing, ExistingFolder, FileChange

JOURNAL = "journal.json"
NAME = re.compile(r"[^/\\\0]+(/[^/\\\0]+)*")


class _Journal(msgspec.Struct, frozen=True):
    """What a save is about to do.

    Attributes:
        names: of the files that it puts in place, the last one last.
        obsolete: of those that it removes then.
        replaced: of the first, those that were there before.
    """

    names: tuple[str, ...]
    obsolete: tuple[str, ...]
    replaced: tuple[str, ...]


def save_into(folder: str | os.PathLike[str], planned: Callable[[Existing], FileChange]) -> Path:
    """Write files into a folder as one, alone; what a killed save left is mended first.

    Args:
        folder: created if missing.
        planned: what to write, from what is there.

    Returns:
        The folder.

    Raises:
        FolderInUseError: if another job writes into the folder; it is left to that job.
        WriteError: see `replace_files`.
        SalveError: whatever `planned` raises; nothing is changed.
    """
    path = usable(folder)
    with locked(path):
        mend(path)
        change = planned(ExistingFolder(path))
        replace_files(path, change.files, obsolete=change.obsolete)
    return path


def mend(folder: Path) -> None:
    """Finish or take back what ended processes left in a folder half done, and remove their copies.

    To be called under the folder's lock.

    Raises:
        WriteError: if that is not possible.
    """
    for staging in dead_entries(folder):
        if staging.is_symlink() or not staging.is_dir():
            continue
        try:
            journal = msgspec.json.decode((staging / JOURNAL).read_bytes(), type=_Journal)
        except (OSError, msgspec.MsgspecError):
            journal = _Journal((), (), ())  # it was killed before it changed anything
        names = [*journal.names, *journal.obsolete]
        # A journal is a file like any other, and could be forged to reach out of the folder.
        if journal.names and all(_is_plain(name) for name in names):
            try:
                # The last file makes the others valid. If it still waits, the older set of files
                # counts.
                if os.path.lexists(staging / "new" / journal.names[-1]):
                    _take_back(staging, folder, journal)
                else:
                    for name in journal.obsolete:
                        _remove(folder, name)
            except OSError as error:
                raise no_such_write(folder, error) from error
        _discard(staging)


def _is_plain(name: str) -> bool:
    return NAME.fullmatch(name) is not None and not {"..", "."} & set(name.split("/"))


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
        WriteError: if the disk is full, the folder is not writable, or a name is taken by
            something else than a file, or a subfolder's by a file or link; what was there is whole.
    """
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_free(folder, contents)
        # Inside the folder, since a rename is atomic within one file system only.
        staging = folder / f".salve-{Owner.this().tag()}"
        # For nobody else to write into: what lies in it is about to become the folder's files.
        staging.mkdir(mode=0o700)
        new = staging / "new"
        for name, data in contents.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, new / name)
                sync_file(new / name)
            else:
                write_atomically(new / name, data)
        # Nothing that is there has been touched until here; from here on the journal can undo it.
        journal = _keep(folder, staging, list(contents), list(obsolete))
        _move_all(staging, folder, journal)
        for name in obsolete:
            _remove(folder, name)
    except WriteError:
        raise
    except OSError as error:
        raise no_such_write(folder, error) from error
    finally:
        if staging is not None:
            _discard(staging)


def _discard(staging: Path) -> None:
    """Remove a staging folder, first of all its journal.

    A journal beside half of what it speaks of would be read as another story.
    """
    with suppress(OSError):
        (staging / JOURNAL).unlink(missing_ok=True)
        sync_folder(staging)
    shutil.rmtree(staging, ignore_errors=True)


def _check_free(folder: Path, names: Collection[str]) -> None:
    taken = [name for name in names if (folder / name).is_dir()]
    if taken:
        raise WriteError(f"cannot write {folder}: {taken} are folders; move them away")
    for name in names:
        with suppress(NotADirectoryError):  # which is told below
            check_regular(folder / name)
    subfolders = {place for name in names for place in places(folder, name)[:-1]}
    taken = sorted(
        place.name
        for place in subfolders
        if place.is_symlink() or (place.exists() and not place.is_dir())
    )
    if taken:
        raise WriteError(f"cannot write {folder}: {taken} are files or links; move them away")


def _keep(folder: Path, staging: Path, names: list[str], obsolete: list[str]) -> _Journal:
    """Keep what is about to be replaced, and write down what is going to happen."""
    replaced = [name for name in names if os.path.lexists(folder / name)]
    for name in replaced:
        kept = staging / "replaced" / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        _second_name(folder / name, kept)
    # Last: a journal promises that everything which it names can be put back.
    journal = _Journal(tuple(names), tuple(obsolete), tuple(replaced))
    write_atomically(staging / JOURNAL, msgspec.json.encode(journal))
    return journal


def _move_all(staging: Path, folder: Path, journal: _Journal) -> None:
    """Rename the staged files into the folder; on any error put back what was replaced."""
    names, made = journal.names, list[Path]()
    try:
        for name in names:
            for subfolder in places(folder, name)[:-1]:
                if not subfolder.exists():
                    subfolder.mkdir()
                    made.append(subfolder)
            # All other names are on the disk before the one that vouches for them.
            if name == names[-1]:
                for place in {(folder / each).parent for each in names} | {folder}:
                    sync_folder(place)
            os.replace(staging / "new" / name, folder / name)
    except BaseException:
        _take_back(staging, folder, journal)
        for subfolder in reversed(made):
            with suppress(OSError):
                subfolder.rmdir()
        raise
    sync_folder((folder / names[-1]).parent)


def _take_back(staging: Path, folder: Path, journal: _Journal) -> None:
    """Put back what was replaced and remove what came new; after a kill, done again."""
    # Each step may have been done by an earlier attempt, so that none relies on the one before.
    for name in journal.names:
        kept = staging / "replaced" / name
        if os.path.lexists(kept):
            # If it was not replaced yet, both names are of one file, or of equal ones where there
            # are no hard links: the rename changes nothing.
            os.replace(kept, folder / name)
        # Neither kept nor waiting: it came new and was moved in already, or is back already.
        elif name not in journal.replaced and not os.path.lexists(staging / "new" / name):
            (folder / name).unlink(missing_ok=True)


def _remove(folder: Path, name: str) -> None:
    """Remove a file and the subfolders that are empty without it."""
    with suppress(OSError):
        (folder / name).unlink()
        for subfolder in reversed(places(folder, name)[:-1]):
            subfolder.rmdir()


def _second_name(path: Path, name: Path) -> None:
    """Keep a file under another name too: taking back is then one rename."""
    try:
        os.link(path, name, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(path, name, follow_symlinks=False)
