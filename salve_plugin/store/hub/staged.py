"""Files to be committed, hashed before anything is sent."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salve_plugin.store.place import Content

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

PIECE = 2**20
BATCH = 100  # paths in one question; the Hub limits the length of a request


@dataclass(frozen=True)
class Digests:
    """What the Hub names a file by.

    Attributes:
        sha256: of the content, by which large files are named.
        git: SHA-1 of git's blob, by which small files are named.
    """

    sha256: str
    git: str

    @classmethod
    def of(cls, content: Content) -> "Digests":
        """Hash bytes or a file in one pass."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        # Git hashes a header with the length in front of the content.
        whole, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        if isinstance(content, bytes):
            whole.update(content)
            blob.update(content)
        else:
            with content.open("rb") as file:
                while piece := file.read(PIECE):
                    whole.update(piece)
                    blob.update(piece)
        return cls(whole.hexdigest(), blob.hexdigest())

    def name(self, file: "RepoFile") -> bool:
        """Tell whether a file on the Hub has this content."""
        # Of a file in LFS, Git's blob is the pointer, not the content.
        return file.blob_id == self.git if file.lfs is None else file.lfs.sha256 == self.sha256


@dataclass(frozen=True)
class Staged:
    """One commit's content.

    Attributes:
        files: by path in the repository.
        digests: of the same files.
        deleted: paths to remove.
    """

    files: Mapping[str, Content]
    digests: Mapping[str, Digests]
    deleted: Sequence[str] = ()

    @classmethod
    def of(cls, files: Mapping[str, Content], deleted: Sequence[str] = ()) -> "Staged":
        """Hash the files."""
        return cls(files, {path: Digests.of(data) for path, data in files.items()}, deleted)

    def is_in(self, client: "HfApi", repo_id: str, revision: str) -> bool:
        """Ask the Hub whether a commit has exactly these files and none of the deleted ones."""
        found = files_at(client, repo_id, revision, [*self.files, *self.deleted])
        return not any(path in found for path in self.deleted) and all(
            path in found and digests.name(found[path]) for path, digests in self.digests.items()
        )


def files_at(
    client: "HfApi", repo_id: str, revision: str, paths: Sequence[str]
) -> "dict[str, RepoFile]":
    """Return those of the paths that are files in a commit."""
    from huggingface_hub.hf_api import RepoFile

    found = [
        entry
        for start in range(0, len(paths), BATCH)
        for entry in client.get_paths_info(
            repo_id, list(paths[start : start + BATCH]), revision=revision
        )
    ]
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
