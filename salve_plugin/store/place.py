"""Where an artifact is, or is going to be written: a folder, a part of one, or a commit."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salve_plugin.errors import ArtifactError
from salve_plugin.store.digest import sha256_file
from salve_plugin.store.files import link_on_the_way, read_plain

Content = bytes | Path
"""A file's bytes, or the local file that has them."""


@dataclass(frozen=True)
class FileChange:
    """What is to be in a folder afterwards.

    Attributes:
        files: by name, in the order in which they are put in place.
        obsolete: names of files to remove.
    """

    files: Mapping[str, Content]
    obsolete: Sequence[str] = ()


class Existing(ABC):
    """Files of a place, as they are; readers and writers pass names from a whitelist only."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes: a `salve_plugin.store.files.FileReader`.

        Raises:
            MissingFileError: if there is no such file.
            ArtifactError: if it is a link, not a plain file, or longer than `limit` bytes.
        """

    @abstractmethod
    def has(self, name: str) -> bool:
        """Tell whether there is anything under a name."""

    @abstractmethod
    def holds(self, name: str, entry: Mapping[str, object]) -> bool:
        """Tell whether a file is exactly what an entry of a manifest says."""


class ExistingPart(Existing):
    """A subfolder of such a place."""

    def __init__(self, whole: Existing, subfolder: str) -> None:
        """Remember both."""
        self._whole, self._prefix = whole, f"{subfolder}/"

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes; see `Existing`."""
        return self._whole.read(self._prefix + name, limit)

    def has(self, name: str) -> bool:
        """Tell whether the name is taken; see `Existing`."""
        return self._whole.has(self._prefix + name)

    def holds(self, name: str, entry: Mapping[str, object]) -> bool:
        """Compare a file with an entry; see `Existing`."""
        return self._whole.holds(self._prefix + name, entry)


class ExistingFolder(Existing):
    """A local folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder."""
        self._folder = folder

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes, a file of a subfolder as "sub/file"; see `Existing`."""
        # It is opened once and never through a link: what is checked is what is used.
        link = link_on_the_way(self._folder, name)
        if link is not None:
            raise ArtifactError(
                f"{link} is a link; links are never followed. Copy the folder with its links "
                "resolved (`cp -rL`) and read the copy"
            )
        return read_plain(self._folder / name, limit)

    def has(self, name: str) -> bool:
        """Tell whether the name is taken, by a file or anything else; see `Existing`."""
        # A link that leads nowhere takes the name, too.
        return os.path.lexists(self._folder / name)

    def holds(self, name: str, entry: Mapping[str, object]) -> bool:
        """Compare size and SHA-256; see `Existing`."""
        path = self._folder / name
        return link_on_the_way(self._folder, name) is None and is_exactly(path, entry)


def is_exactly(path: Path, entry: Mapping[str, object]) -> bool:
    """Tell whether a local file has the size and SHA-256 of an entry; it is read in pieces."""
    try:
        return (
            path.is_file()
            # The size first: only a file that has it is read.
            and path.stat().st_size == entry["size"]
            and sha256_file(path) == entry["sha256"]
        )
    except OSError:  # gone meanwhile, or not to be read: nobody can say that it is the file
        return False
