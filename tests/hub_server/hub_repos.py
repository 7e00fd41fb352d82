"""Repositories on disk, and who may do what with them."""

import json
import os
import re
import shutil
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hub_disk import write_whole
from hub_git import GitRepository
from hub_http import HubError, Request
from hub_users import User, user_of

Need = Literal["see", "read", "propose", "write"]
"""What a request does: look at names and settings, read contents, propose or make a change."""

LARGE = "7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb "
LARGE += "pickle pkl pt pth rar safetensors tar tflite tgz wasm xz zip zst"
ATTRIBUTES = "".join(f"*.{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LARGE.split())
"""The `.gitattributes` of every new repository: the Hub asks it which files are large ones."""

NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")


def now() -> str:
    """Return the time in the only form that the client reads."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass(frozen=True)
class Repository:
    """One repository: its history is git's, its settings lie in a file beside."""

    kind: str  # "models", "datasets" or "spaces"
    id: str  # owner/name
    git: GitRepository

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads((self.git.path / "hub.json").read_bytes())
        return settings

    def update(self, **changes: object) -> None:
        """Change settings."""
        with self.git.lock:
            changed = json.dumps({**self.settings(), **changes})
            write_whole(self.git.path / "hub.json", changed.encode())

    def find(self, revision: str) -> str:
        """Return the commit of a revision.

        Raises:
            HubError: 404, which the client turns into RevisionNotFoundError.
        """
        commit = self.git.find(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


class Repositories:
    """All repositories below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._open: dict[Path, GitRepository] = {}

    def _path(self, kind: str, name: str) -> Path:
        return self._root / kind / f"{name}.git"

    def get(self, kind: str, name: str) -> Repository | None:
        """Return a repository, None if there is none."""
        parts = name.split("/")
        if len(parts) != 2 or not all(NAME.fullmatch(part) for part in parts):
            return None
        path = self._path(kind, name)
        with self._lock:
            if not path.is_dir():
                self._open.pop(path, None)
                return None
            return Repository(kind, name, self._open.setdefault(path, GitRepository(path)))

    def all(self, kind: str, owner: str) -> list[Repository]:
        """Return the repositories of an owner (`*` for all)."""
        paths = sorted((self._root / kind).glob(f"{owner}/*.git"))
        found = (self.get(kind, f"{path.parent.name}/{path.stem}") for path in paths)
        return [repository for repository in found if repository]

    def create(self, kind: str, name: str, private: bool) -> Repository | None:
        """Create a repository with the Hub's first commit, None if there is one of that name."""
        built = self._root / "tmp" / uuid.uuid4().hex
        built.parent.mkdir(exist_ok=True)
        git, owner = GitRepository.create(built), name.split("/")[0]
        changes: dict[str, bytes | None] = {".gitattributes": ATTRIBUTES.encode()}
        git.commit("refs/heads/main", None, changes, "initial commit", owner)
        settings = {"createdAt": now(), "private": private, "gated": False, "discussions": []}
        write_whole(built / "hub.json", json.dumps(settings).encode())
        path = self._path(kind, name)
        with self._lock:
            if path.exists():
                shutil.rmtree(built)
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(built, path)
        return self.get(kind, name)

    def delete(self, repository: Repository) -> None:
        with self._lock:
            gone = self._root / "tmp" / uuid.uuid4().hex
            gone.parent.mkdir(exist_ok=True)
            os.rename(repository.git.path, gone)
            self._open.pop(repository.git.path, None)
        shutil.rmtree(gone)

    def move(self, repository: Repository, name: str) -> bool:
        """Give a repository another name; False if it is taken."""
        path = self._path(repository.kind, name)
        with self._lock:
            if path.exists():
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(repository.git.path, path)
            self._open.pop(repository.git.path, None)
        return True

    def open(self, request: Request, kind: str, name: str, need: Need) -> Repository:
        """Return a repository for a request.

        A missing repository and a private one of someone else look alike, and anonymous requests
        get 401 for both: the client makes RepositoryNotFoundError of either. Anyone sees the names
        of the files of a gated repository; nobody is on the list of those who may read them.

        Raises:
            HubError: 401, 403 or 404.
        """
        user, repository = user_of(request), self.get(kind, name)
        settings = repository.settings() if repository else {}
        mine = user is not None and user.name == name.split("/")[0]
        if repository is None or (settings["private"] and not mine):
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if need in ("propose", "write"):
            _check_write(user, mine or need == "propose")
        elif need == "read" and settings["gated"] and not mine:
            hint = "You must have access to it and be authenticated to access it. Please log in."
            if user is not None:
                hint = "Visit the page of the model to ask for access."
            message = f"Access to {kind[:-1]} {name} is restricted. {hint}"
            raise HubError(403 if user else 401, message, "GatedRepo")
        return repository


def _check_write(user: User | None, allowed: bool) -> None:
    if user is None:
        raise HubError(401, "Invalid username or password.")
    if user.role != "write":
        hint = "you must use a write token to upload to a repository."
        raise HubError(403, f"Forbidden: {hint}")
    if not allowed:
        raise HubError(403, "Forbidden: you don't have the rights for this repository")
