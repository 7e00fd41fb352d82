"""The commit that the Hub client's cache has, looked at without a network."""

from collections.abc import Mapping
from pathlib import Path

from salve_plugin.errors import HubError
from salve_plugin.store.hub.snapshot import Snapshot
from salve_plugin.store.place import Existing, is_exactly


class CachedCommit(Existing):
    """Files of one commit as far as they are in the cache; what is not there is not known."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Remember the snapshot, which does not use the network."""
        self._snapshot = snapshot

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a file's bytes; see `Existing` and `Snapshot.read`."""
        return self._snapshot.read(name, limit)

    def has(self, name: str) -> bool:
        """Return True, or raise HubError if the cache does not know; see `Existing`."""
        return self._path(name).is_file()

    def holds(self, name: str, entry: Mapping[str, object]) -> bool:
        """Compare size and SHA-256; see `Existing`."""
        return is_exactly(self._path(name), entry)

    def _path(self, name: str) -> Path:
        path = self._snapshot.cached(name)
        if path is None:
            raise HubError(
                f"{name} of {self._snapshot.address} is not in the cache, so that it cannot be "
                "checked without the network; call with a connection, which downloads no model",
                reason="not_cached",
            )
        return path
