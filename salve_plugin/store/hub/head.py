"""The commit that a push builds on, and what lies in it."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from salve_plugin.errors import ArtifactError, HubError, MissingFileError
from salve_plugin.store.hub.address import Address
from salve_plugin.store.hub.patience import patiently
from salve_plugin.store.hub.snapshot import Snapshot
from salve_plugin.store.hub.staged import Digests, files_at
from salve_plugin.store.place import Existing
from salve_plugin.store.seal import FileEntry

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


class ExistingCommit(Existing):
    """Files of one commit; what is read is what the Hub names by its digest, or an error."""

    def __init__(self, address: Address) -> None:
        """Remember the address, whose revision is a commit."""
        self._address = address
        self._client = address.access.client()
        self._snapshot: Snapshot | None = None
        self._known: dict[str, RepoFile | None] = {}

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes; see `Existing`.

        Raises:
            MissingFileError: if there is no such file.
            ArtifactError: if it is longer than `limit` bytes.
            HubError: if it cannot be had as the Hub describes it.
        """
        file = self._file(name)
        if file is None:
            raise MissingFileError(f"{self._address} has no {name}; check the name")
        if self._snapshot is None:
            self._snapshot = Snapshot(self._address, name)
        doing = f"read {name} of {self._address}"
        for fresh in (False, True):
            # What is read here is written back (a card's text): a damaged copy in the cache would
            # be pushed, and what only cannot be had would be taken for what is not there.
            with suppress(MissingFileError):
                data = patiently(doing, partial(self._snapshot.read, name, limit, fresh=fresh))
                if Digests.of(data).name(file):
                    return data
        raise HubError(
            f"cannot {doing}: what arrives is not what the Hub says it has; make the same call "
            "again later",
            reason="transfer",
        )

    def has(self, name: str) -> bool:
        """Tell whether the commit has a file of that name; see `Existing`."""
        return self._file(name) is not None

    def holds(self, name: str, entry: Mapping[str, object]) -> bool:
        """Compare with the Hub's own digest, or with the content of a small file."""
        file = self._file(name)
        if file is None:
            return False
        if file.lfs is not None:
            return {"sha256": file.lfs.sha256, "size": file.lfs.size} == dict(entry)
        try:
            data = self.read(name, file.size)
        except ArtifactError:
            return False
        return FileEntry.of(data) == dict(entry)

    def _file(self, name: str) -> "RepoFile | None":
        if name not in self._known:
            path, address = self._address.path_of(name), self._address
            assert address.revision is not None
            commit = address.revision
            found = patiently(
                f"look at {path} in {address.repo_id}",
                lambda: files_at(self._client, address.repo_id, commit, [path]),
            )
            self._known[name] = found.get(path)
        return self._known[name]
