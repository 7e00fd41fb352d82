"""Files of one commit, through the Hub client's cache: the revision is resolved exactly once."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from salve_plugin.errors import ArtifactError, HubError, MissingFileError, WriteError
from salve_plugin.store.files import read_plain, write_atomically
from salve_plugin.store.hub.address import DEFAULT_REVISION, Address, Origin, Resolved
from salve_plugin.store.hub.failures import TRANSIENT, translated
from salve_plugin.store.hub.patience import patiently
from salve_plugin.store.place import Existing, is_exactly
from salve_plugin.store.reference import COMMIT, Reference

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata


_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Snapshot(Existing):
    """Reads files of one commit; what the cache lacks is downloaded.

    As a place it is looked at without a network: what the cache lacks is not known then.

    Attributes:
        address: what was asked for.
        commit: what its revision is.
        resolved: how that became known.
        offline: whether only the cache is used.
    """

    def __init__(self, address: Address, *markers: str) -> None:
        """Resolve the revision.

        Args:
            address: what to read.
            *markers: names of files of which one should be there. Asking for the first tells the
                commit, even if that has no such file; in the cache any of them does.

        Raises:
            MissingFileError: if none is there and the answers do not tell the commit either.
            HubError: if the Hub refuses or cannot be reached and the cache does not help.
        """
        from huggingface_hub import constants

        self.address = address
        self._client = address.access.client()
        self.offline = address.local_files_only or bool(constants.HF_HUB_OFFLINE)
        folder = constants.HF_HUB_CACHE if address.cache_dir is None else address.cache_dir
        self._cache = Path(folder).expanduser().absolute()
        self._downloaded = False
        self._markers = markers
        self.commit, self.resolved = self._resolve(address.revision or DEFAULT_REVISION)

    @property
    def origin(self) -> Origin:
        """What has been read until now, and from where."""
        address = self.address
        return Origin(
            Reference(address.repo_id, self.commit, address.subfolder),
            address.revision or DEFAULT_REVISION,
            self.resolved,
            from_cache=not self._downloaded,
        )

    def read(self, name: str, limit: int, *, fresh: bool = False) -> bytes:
        """Return the bytes of a file; see `salve_plugin.store.files.FileReader`.

        Args:
            name: of the file.
            limit: most bytes that are read.
            fresh: download it anew: what lies in the cache is not trusted.

        Raises:
            ArtifactError: if there is no such file, it is too long, or the cache holds something
                else than a plain file for it.
            HubError: if it is not in the cache and cannot be downloaded.
            WriteError: if the cache is full or read-only.
        """
        fresh = fresh or self.address.force_download
        # Always by the commit, never by the branch: a push in between must not mix two versions.
        path = None if fresh else self._cached(name, self.commit)
        path = self._download(name, limit) if path is None else path
        return read_plain(self._resolved(path, name), limit)

    def has(self, name: str) -> bool:
        """Return True, or raise HubError if the cache does not know; see `Existing`."""
        return self._known(name).is_file()

    def holds(self, name: str, entry: Mapping[str, object]) -> bool:
        """Compare size and SHA-256 of a file in the cache; see `Existing`."""
        return is_exactly(self._known(name), entry)

    def _known(self, name: str) -> Path:
        path = self._cached(name, self.commit)
        if path is None:
            raise HubError(
                f"{name} of {self.address} is not in the cache, so that it cannot be checked "
                "without the network; call with a connection, which downloads no model",
                reason="not_cached",
            )
        return self._resolved(path, name)

    def _resolved(self, path: Path, name: str) -> Path:
        # The client's cache is made of links. They are followed here, and only inside the cache.
        try:
            resolved = path.resolve(strict=True)
        except OSError as error:
            raise ArtifactError(
                f"the cache entry {path} of {name} leads nowhere; call again with "
                "force_download=True"
            ) from error
        if not resolved.is_relative_to(self._cache.resolve()):
            raise ArtifactError(
                f"the cache entry {path} of {name} leads out of the cache, to {resolved}; remove "
                "it, then call again"
            )
        return resolved

    def _download(self, name: str, limit: int) -> Path:
        address = self.address

        def get() -> str:
            if not self.offline:
                self._check_head(name, limit)
            return self._client.hf_hub_download(
                address.repo_id,
                address.path_of(name),
                revision=self.commit,
                cache_dir=self._cache,
                local_files_only=self.offline,
                force_download=not self.offline,
            )

        try:
            path = patiently(f"download {name} of {address}", get)
        except HubError as error:
            raise (self._missing(name) if error.reason == "no_file" else error) from error
        self._downloaded = True
        return Path(path)

    def _check_head(self, name: str, limit: int) -> None:
        """Refuse a file that is too long, or is not ours, before a byte of it is downloaded."""
        head = self._head(name, self.commit)
        # The client makes paths in its cache of both.
        if head.commit_hash != self.commit or not _ETAG.fullmatch(head.etag or ""):
            raise ArtifactError(
                f"the answer about {name} of {self.address} at {self.commit} is for commit "
                f"{str(head.commit_hash)[:60]!r} and has the ETag {str(head.etag)[:60]!r}, which "
                f"no Hub gives; is {self._client.endpoint} one? Nothing was downloaded"
            )
        size = head.size
        if size is None or size > limit:
            raise ArtifactError(
                f"{name} of {self.address} has {'an unknown number of' if size is None else size} "
                f"bytes, more than the {limit} that it should have or that are read at most; it "
                "was not downloaded. It was changed or is no artifact of salve_plugin"
            )

    def _resolve(self, revision: str) -> tuple[str, Resolved]:
        if COMMIT.fullmatch(revision):
            return revision, "pinned"
        if self.offline:
            return self._remembered(revision), "cache"
        try:
            commit = self._asked(revision)
        except HubError as error:
            return self._after(error, revision), "cache"
        if commit is None or not COMMIT.fullmatch(commit):
            raise HubError(
                f"the answer about '{revision}' of {self.address} names no commit; is "
                f"{self._client.endpoint} a Hub?",
                reason="server",
            )
        self._remember(revision, commit)
        return commit, "hub"

    def _asked(self, revision: str) -> str | None:
        """Return the commit that the Hub names when it is asked for the first marker.

        It names it in a refusal, too. Where something else than a Hub does not, the next marker is
        asked for.
        """
        refused: MissingFileError | None = None
        for marker in self._markers:
            try:
                with translated(f"look up '{revision}' of {self.address}"):
                    return self._head(marker, revision).commit_hash
            except HubError as error:
                if error.reason != "no_file":
                    raise
                commit = _named_commit(error)
                if commit is not None:
                    return commit
                refused = refused or self._missing(marker)
        assert refused is not None
        raise refused

    def _after(self, error: HubError, revision: str) -> str:
        """Return the commit that the cache remembers, if the Hub only cannot answer just now.

        A refusal (no access, no such repository) is never answered from the cache.
        """
        if error.reason not in TRANSIENT or self.address.force_download:
            raise error
        path = self._cached_marker(revision)
        if path is None:
            raise error
        commit = self._commit_of(path)
        warnings.warn(
            f"{error} The cache is used instead: '{revision}' of {self.address} was commit "
            f"{commit} when the Hub was last asked",
            stacklevel=7,  # the line that reads the thing
        )
        return commit

    def _missing(self, name: str) -> MissingFileError:
        revision = self.address.revision or DEFAULT_REVISION
        return MissingFileError(
            f"{self.address} has no {name} at '{revision}': nothing complete lies there; check "
            "the subfolder and the revision"
        )

    def _remembered(self, revision: str) -> str:
        path = self._cached_marker(revision)
        if path is None:
            raise HubError(
                f"'{revision}' of {self.address} is not in the cache {self._cache} and the network "
                "is not to be used (local_files_only or HF_HUB_OFFLINE); call once with a "
                "connection, or check cache_dir and revision",
                reason="not_cached",
            )
        return self._commit_of(path)

    def _remember(self, revision: str, commit: str) -> None:
        """Keep what the Hub said for calls without a network, in the client's own way."""
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=self.address.repo_id, repo_type="model")
        path = self._cache / folder / "refs" / revision
        try:
            if not path.is_file() or path.read_bytes() != commit.encode():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, commit.encode())
        except (OSError, WriteError):  # a read-only cache: nothing is remembered
            pass

    def _cached(self, name: str, revision: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        address = self.address
        try:
            path = try_to_load_from_cache(
                address.repo_id, address.path_of(name), cache_dir=self._cache, revision=revision
            )
        except (OSError, ValueError):  # what the cache remembers of the revision cannot be read
            return None
        # The client may also answer that the commit once had no such file, which counts as not
        # known.
        return Path(path) if isinstance(path, str) else None

    def _cached_marker(self, revision: str) -> Path | None:
        found = (self._cached(marker, revision) for marker in self._markers)
        return next((path for path in found if path is not None), None)

    def _commit_of(self, path: Path) -> str:
        """Return the commit that a cache entry, .../snapshots/<commit>/<path>, belongs to."""
        # models--user--name / snapshots / <commit> / ...
        commit = path.relative_to(self._cache).parts[2]
        if not COMMIT.fullmatch(commit):
            raise ArtifactError(f"{path} is no cache entry of the Hub client; remove it")
        return commit

    def _head(self, name: str, revision: str) -> "HfFileMetadata":
        from huggingface_hub import hf_hub_url

        address, client = self.address, self._client
        url = hf_hub_url(
            address.repo_id, address.path_of(name), revision=revision, endpoint=client.endpoint
        )
        return client.get_hf_file_metadata(url=url)


def _named_commit(error: HubError) -> str | None:
    headers = getattr(getattr(error.__cause__, "response", None), "headers", {})
    commit = headers.get("X-Repo-Commit", "")
    return commit if COMMIT.fullmatch(commit) else None
