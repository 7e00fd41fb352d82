"""Nothing that somebody made is overwritten by something else, unless that is asked for."""

import os
from collections.abc import Sequence
from pathlib import Path

from salve_plugin.discover.dictionary_files import DICTIONARY
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.files import usable
from salve_plugin.store.place import ExistingFolder
from salve_plugin.store.seal import Format
from salve_plugin.store.stored import Stored

FORMATS: tuple[Format, ...] = (EditBundle.format, EditArtifact.format, DICTIONARY)


def check_outside(out: Path, images: Sequence[Path | str]) -> None:
    """Keep results out of folders of images, where the next command would take them for some.

    Raises:
        InputError: if `out` is one of the folders, or in one.
    """
    place = usable(out).resolve()
    for folder in images:
        if place.is_relative_to(Path(folder).resolve()):
            raise InputError(
                f"--out {out} is inside the image folder {folder}; write somewhere else"
            )


def save(thing: Stored, out: Path, *, force: bool) -> None:
    """Save an edit, a bundle or a dictionary, if nothing else would be lost.

    Raises:
        InputError: if something else lies there and `force` is not given.
        SalveError: as `save_pretrained`.
    """
    check_free(out, thing.digest, force=force)
    thing.save_pretrained(out)


def check_folder(out: Path) -> None:
    """Check that a folder can be made, before anything is computed for it.

    Raises:
        InputError: if something else has its name.
    """
    if os.path.lexists(usable(out)) and not usable(out).is_dir():
        raise InputError(f"--out {out} is a file, and a folder is to be written; choose another")


def check_free(out: Path, digest: str | None = None, *, force: bool) -> None:
    """Check that a folder holds nothing, or the same thing.

    Args:
        out: folder.
        digest: of what is to be saved there; None if it is not known yet.
        force: whether anything may be replaced.

    Raises:
        InputError: naming what lies there.
    """
    if force:
        return
    for form in FORMATS:
        # A dangling link is somebody's, too.
        if not os.path.lexists(usable(out) / form.manifest):
            continue
        config = form.previous(ExistingFolder(out))
        there = None if config is None else form.own(config)["digest"]
        if there is None:
            raise _taken(out, f"a {form.manifest} that is damaged or somebody else's")
        if there != digest:
            raise _taken(out, f"another {form.name}, {there[:12]}")


def check_file(
    path: Path, data: bytes | None = None, *, force: bool, option: str = "--out"
) -> None:
    """Check that there is no other file.

    Args:
        path: of the file.
        data: that is to be written; None if it is not known yet.
        force: whether it may be replaced.
        option: by which the path was given, for the message.

    Raises:
        InputError: if there is one.
    """
    if force or not usable(path).is_file():
        return
    # The same bytes again are no loss: a command can be repeated.
    if data is None or path.stat().st_size != len(data) or path.read_bytes() != data:
        raise _taken(path, "another file", option)


def _taken(path: Path, what: str, option: str = "--out") -> InputError:
    return InputError(
        f"{path} holds {what}, which would be overwritten; choose another {option}, or add --force"
    )
