"""An atlas as a folder: which files are ours, and that nobody else's are touched."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from salve_plugin.errors import ArtifactError, InputError, MissingFileError
from salve_plugin.report.scripts import provided
from salve_plugin.store.digest import sha256_bytes
from salve_plugin.store.folders import save_into
from salve_plugin.store.place import Existing, ExistingFolder, FileChange

MANIFEST = "atlas.json"
PAGE = ("index.html", "atlas.js", "atlas.css", "LICENSES.txt")
FORMAT_VERSION = 1
OWN = re.compile(r"atlas\.(js|css)|index\.html|LICENSES\.txt|data/[a-z0-9/]+\.js")
"""Names that files of an atlas have."""
_MAX_BYTES = 64 * 2**20
_MAX_FILE_BYTES = 2**40


def page_files() -> dict[str, bytes]:
    """Return the files that are the same in every atlas, by name."""
    page = files(__package__) / "page"
    return {name: (page / name).read_bytes() for name in PAGE}


def save(
    folder: Path, contents: Mapping[str, bytes], about: Mapping[str, Any], *, force: bool
) -> Path:
    """Write an atlas, all of it or nothing, in the place of an earlier one of the same study.

    Args:
        folder: made if missing.
        contents: of the files by name.
        about: what the atlas is of; an atlas of something else is not replaced.
        force: replace it all the same, and files that no atlas wrote.

    Returns:
        The folder.

    Raises:
        InputError: if something else lies there.
        WriteError: if it cannot be written; what was there is whole.
    """
    digests = {name: sha256_bytes(data) for name, data in sorted(contents.items())}
    manifest = {"about": about, "files": digests, "format_version": FORMAT_VERSION}
    content = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"

    def planned(there: Existing) -> FileChange:
        before = _manifest(there)
        ours = {} if before is None else before["files"]
        if not force:
            if before is not None and before["about"] != about:
                raise _taken(folder, f"the atlas of another study ({_named(before['about'])})")
            # A file may be as the earlier atlas wrote it, or as this one would; anything else is
            # somebody's.
            known = {MANIFEST} if before is not None else set()
            for name in (MANIFEST, *digests):
                if (
                    there.has(name)
                    and name not in known
                    and not _is(there, name, ours.get(name), digests.get(name))
                ):
                    raise _taken(folder, f"{name}, which is not as an atlas wrote it")
        # Only what is still as it was written is removed, and only what could be of an atlas.
        obsolete = [
            name
            for name, digest in sorted(ours.items())
            if name not in contents and OWN.fullmatch(name) and _is(there, name, digest)
        ]
        return FileChange({**contents, MANIFEST: content}, obsolete)

    return save_into(folder, planned)


@dataclass(frozen=True)
class Pages:
    """An atlas that was written, to be read a piece at a time.

    Attributes:
        folder: where it lies.
        files: SHA-256 of its files by name.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> "Pages":
        """Look into a folder.

        Raises:
            MissingFileError: if there is no atlas.
        """
        manifest = _manifest(ExistingFolder(folder))
        if manifest is None:
            raise MissingFileError(
                f"{folder} holds no atlas (no {MANIFEST}); write one there: salve.atlas(...), or "
                "`salve atlas` on a study or an artifact"
            )
        return cls(folder, manifest["files"])

    def piece(self, key: str) -> bytes:
        """Return one piece of the data as JSON; `Content` names them.

        Raises:
            ArtifactError: if the atlas has no such piece, or its file is not as it was written.
        """
        name = f"data/{key}.js"
        if name not in self.files or not OWN.fullmatch(name):
            raise ArtifactError(f"{self.folder} has no data {key[:80]!r}; write the atlas again")
        # The key came from a page: by now it is the name of one of the atlas' own files.
        content = ExistingFolder(self.folder).read(name, _MAX_FILE_BYTES)
        if sha256_bytes(content) != self.files[name]:
            raise ArtifactError(
                f"{self.folder / name} was written again or changed; make the widget again, and if "
                "that does not help, the atlas"
            )
        return provided(key, content)


def _manifest(there: Existing) -> Mapping[str, Any] | None:
    """Return the manifest of the atlas that is there, None if there is none that can be read."""
    try:
        manifest = json.loads(there.read(MANIFEST, _MAX_BYTES))
    # JSON that is nested deeper than the stack ends in a RecursionError; no atlas writes that.
    except (ArtifactError, ValueError, RecursionError):
        return None
    known = isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)
    return manifest if known and "about" in manifest else None


def _is(there: Existing, name: str, *digests: object) -> bool:
    try:
        content = there.read(name, _MAX_FILE_BYTES)
    except ArtifactError:
        return False
    return sha256_bytes(content) in digests


def _named(about: object) -> str:
    return json.dumps(about, sort_keys=True)[:200]


def _taken(folder: Path, what: str) -> InputError:
    return InputError(
        f"{folder} holds {what}, and that would be overwritten; choose another folder, or force "
        "it (force=True, --force)"
    )
