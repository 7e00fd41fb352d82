"""Where an artifact is read from: a local folder, or a repository on the Hub."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from salve_plugin.errors import ArtifactError, InputError, MissingFileError
from salve_plugin.store.files import FileReader, usable
from salve_plugin.store.hub.access import Token
from salve_plugin.store.hub.address import Address, Origin
from salve_plugin.store.hub.head import ExistingCommit
from salve_plugin.store.hub.snapshot import Snapshot
from salve_plugin.store.place import Existing, ExistingFolder
from salve_plugin.store.reference import check_subfolder

PathLike = str | os.PathLike[str]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Source:
    """Files to read.

    Attributes:
        name: for messages.
        reader: returns a file's bytes by its name.
        existing: the same files, to compare those that are too large to be read.
        snapshot: what is read, if it is on the Hub.
    """

    name: str
    reader: FileReader
    existing: Existing
    snapshot: Snapshot | None = None

    @property
    def origin(self) -> Origin | None:
        """The exact place on the Hub; None for a local folder."""
        return None if self.snapshot is None else self.snapshot.origin

    def use(self, parse: Callable[[FileReader], Result]) -> Result:
        """Return `parse(reader)`; what is refused is downloaded anew, once.

        The Hub client checks the size of what it downloads and keeps in its cache, never the
        content: a file that is refused may have been hurt there or on its way. Nothing new can
        come of a file that the commit does not have.

        Raises:
            ArtifactError: from `parse`, if the files are wrong where they come from.
        """
        try:
            return parse(self.reader)
        except MissingFileError:
            raise
        except ArtifactError as error:
            if self.snapshot is None:
                raise
            if self.snapshot.offline:
                raise ArtifactError(
                    f"{error} (read from the cache of the Hub client; with a connection, "
                    "force_download=True gets the files again)"
                ) from error
            if self.snapshot.address.force_download:
                raise
            return parse(partial(self.snapshot.read, fresh=True))

    def check_beside(self, entries: Mapping[str, Any], manifest: str) -> None:
        """Check large files that a manifest lists, without loading them.

        A local file is hashed in pieces. On the Hub its own digests are compared: nothing large is
        downloaded, and a copy elsewhere is not looked at.

        Args:
            entries: as it lists them, by path.
            manifest: its name, for messages.

        Raises:
            ArtifactError: if a file is missing, or is not what is listed.
            HubError: if the Hub cannot be asked.
        """
        for name, entry in sorted(entries.items()):
            if not self.existing.has(name):
                raise MissingFileError(
                    f"{self.name} has no {name}, but {manifest} lists it: the edited model is "
                    "incomplete. Save or push it again"
                )
            if not self.existing.holds(name, entry):
                raise ArtifactError(
                    f"{name} of {self.name} was changed: {manifest} lists {entry['size']} bytes "
                    f"with the SHA-256 {entry['sha256']}. Save or push the edited model again"
                )


class Where(TypedDict, total=False):
    """Further arguments of everything that reads from a folder or the Hub, all optional.

    Attributes:
        revision: branch, tag or commit of the repository; by default the head of `main`. It is
            resolved to a commit once. A full commit id needs no request once it is in the cache.
        subfolder: inside the folder or repository.
        token: for private and gated repositories; by default the one that the user has logged in
            with, which is sent to the user's own Hub only.
        cache_dir: the Hub client's cache, by default its own.
        local_files_only: never use the network.
        force_download: trust nothing in the cache.
        endpoint: address of the Hub, by default the client's (`HF_ENDPOINT`).
    """

    revision: str | None
    subfolder: str | None
    token: Token
    cache_dir: PathLike | None
    local_files_only: bool
    force_download: bool
    endpoint: str | None


def open_source(source: PathLike, *markers: str, **where: Unpack[Where]) -> Source:
    """Return the files of a local folder or, if there is no such folder, of a Hub repository.

    Args:
        source: path of a folder, or "user/name".
        *markers: names of files of which one should be there.
        **where: see `Where`.

    Raises:
        InputError: if an argument is ill-formed or makes no sense for a local folder.
        ArtifactError: if there is no such folder and the name cannot be a repository's, or none
            of the files is there and the Hub does not say in which commit it looked.
        HubError: if the Hub refuses or cannot be reached, and the cache does not help.
    """
    if source == "":  # before it is taken for a path: it may be a repository's name, too
        raise InputError("the source is empty; expected a folder or 'user/name'")
    unknown = sorted(where.keys() - Where.__annotations__.keys())
    if unknown:
        raise InputError(
            f"there is no argument {unknown[0]!r}; those of reading are "
            f"{list(Where.__annotations__)}"
        )
    folder = usable(source)
    if folder.is_dir():
        return _local(folder, where)
    # A path that is mistyped must not become a request: only what can be the name of a repository,
    # and is not that of a file, goes to a Hub.
    if (
        isinstance(source, os.PathLike)
        or source.count("/") != 1
        or source[0] in "./~"
        or os.path.lexists(folder)
    ):
        raise ArtifactError(
            f"there is no folder '{os.fspath(source)}'; check the path (the name of a Hub "
            "repository has the form 'user/name')"
        )
    return open_repository(source, *markers, **where)


def open_repository(repo_id: str, *markers: str, **where: Unpack[Where]) -> Source:
    """Return the files of a Hub repository, whatever local folders there are.

    Raises:
        SalveError: as for `open_source`.
    """
    address = Address.of(repo_id, where)
    snapshot = Snapshot(address, *markers)
    # One commit for all that follows, even if the branch moves meanwhile.
    pinned = replace(address, revision=snapshot.commit)
    existing = snapshot if snapshot.offline else ExistingCommit(pinned)
    return Source(str(address), snapshot.read, existing, snapshot)


def _local(folder: Path, where: Where) -> Source:
    if where.get("revision") is not None or where.get("force_download"):
        raise InputError(
            f"'{folder}' is a local folder, which has no revisions and is not downloaded; leave "
            "out revision and force_download, or, to read the repository of that name from the "
            "Hub, call where there is no such folder"
        )
    subfolder = where.get("subfolder")
    check_subfolder(subfolder)
    place = folder if subfolder is None else usable(folder / subfolder)
    # The steps of the subfolder alone: links above the folder are the caller's own.
    inside = [] if subfolder is None else [place, *place.parents][: subfolder.count("/") + 1]
    if any(each.is_symlink() for each in inside):
        raise ArtifactError(f"subfolder '{subfolder}' of '{folder}' leads through a link; copy it")
    if not place.is_dir():
        raise ArtifactError(f"there is no folder '{place}'; check the subfolder")
    existing = ExistingFolder(place)
    return Source(str(place), existing.read, existing)
