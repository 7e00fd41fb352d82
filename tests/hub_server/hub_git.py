"""A bare git repository of the Hub: every id, tree, branch and tag that the API tells is git's own.

All changes are one `git fast-import` each, which moves the branch after all objects are written:
a process that dies leaves the old history or the new one.
"""

import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
DATE = "--date=format-local:%Y-%m-%dT%H:%M:%S.000Z"  # the only form that the client reads
MODES = {b"blob": "file", b"tree": "directory"}


@dataclass(frozen=True)
class Pointer:
    """What a large file is in git: its SHA-256 and size; the content lies elsewhere."""

    sha256: str
    size: int

    def text(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass(frozen=True)
class Entry:
    """A file or folder of a commit."""

    kind: str  # "file" or "directory"
    oid: str
    size: int  # of the git object: of the pointer, for a large file
    path: str
    lfs: Pointer | None = None


@dataclass(frozen=True)
class Commit:
    """A line of the history."""

    oid: str
    author: str
    date: str
    title: str
    message: str


class GitError(Exception):
    """Git refused."""


class GitRepository:
    """Reads and writes one bare repository with the `git` program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        """Held from reading a branch until it is moved."""
        self._trees: dict[str, dict[str, Entry]] = {}

    @classmethod
    def create(cls, path: Path) -> "GitRepository":
        repository = cls(path)
        repository._git("init", "--quiet", "--bare", "--template=", "--initial-branch=main")
        return repository

    def _git(self, *arguments: str, stdin: bytes = b"", author: str = "hub") -> bytes:
        """Run git without any of the user's settings.

        Raises:
            GitError: with what git said.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        environment |= {"TZ": "UTC", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        for role in ("AUTHOR", "COMMITTER"):
            environment[f"GIT_{role}_NAME"] = author
            environment[f"GIT_{role}_EMAIL"] = f"{author}@hub.test"
        command = ["git", "-c", "core.fsync=none", "-c", "gc.auto=0", f"--git-dir={self.path}"]
        done = subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, env=environment
        )
        if done.returncode:
            raise GitError(done.stderr.decode(errors="replace").strip())
        return done.stdout

    def refs(self) -> dict[str, str]:
        """Return the commit of every branch, tag and pull request by full name."""
        form = "--format=%(refname) %(objectname) %(*objectname)"
        lines = self._git("for-each-ref", form).decode().splitlines()
        return {name: oids[-1] for name, *oids in map(str.split, lines)}

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, a tag, a full reference, or seven digits of an id."""
        if revision in self._trees:
            return revision
        refs = self.refs()
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return refs[name]
        if revision == "HEAD":
            return refs.get("refs/heads/main")
        if not re.fullmatch("[0-9a-f]{7,40}", revision):
            return None
        try:
            return self._git("rev-parse", "--verify", revision + "^{commit}").decode().strip()
        except GitError:
            return None

    def tree(self, commit: str) -> dict[str, Entry]:
        """Return all files and folders of a commit by path. Two processes once, then memory."""
        if commit not in self._trees:
            found = []
            for line in self._git("ls-tree", "-r", "-t", "-l", "-z", commit).split(b"\0")[:-1]:
                properties, path = line.split(b"\t", 1)
                _, kind, oid, size = properties.split()
                number = 0 if size == b"-" else int(size)
                found.append(Entry(MODES[kind], oid.decode(), number, path.decode()))
            small = [entry.oid for entry in found if 120 < entry.size < 200]
            pointers = {
                oid: Pointer(match[1].decode(), int(match[2]))
                for oid, data in self.blobs(small).items()
                if (match := POINTER.fullmatch(data))
            }
            self._trees[commit] = {
                e.path: Entry(e.kind, e.oid, e.size, e.path, pointers.get(e.oid)) for e in found
            }
        return self._trees[commit]

    def blobs(self, oids: list[str]) -> dict[str, bytes]:
        """Return the contents of git objects, in one process."""
        if not oids:
            return {}
        out = self._git("cat-file", "--batch", stdin="\n".join(oids).encode() + b"\n")
        contents, place = {}, 0
        for oid in oids:
            end = out.index(b"\n", place)
            size = int(out[place:end].split()[2])
            contents[oid] = out[end + 1 : end + 1 + size]
            place = end + size + 2
        return contents

    def read(self, commit: str, path: str) -> bytes | None:
        """Return what git has of a file, None without such a file."""
        entry = self.tree(commit).get(path)
        if entry is None or entry.kind != "file":
            return None
        return self.blobs([entry.oid])[entry.oid]

    def commit(
        self,
        ref: str,
        parent: str | None,
        changes: dict[str, bytes | None],
        message: str,
        author: str,
    ) -> str:
        """Move a reference to a new commit on `parent`; the caller holds the lock.

        Args:
            ref: full name; created if there is none.
            parent: None for the first commit of a repository.
            changes: contents by path, None to delete a file or a folder.
            message: title, blank line, description.
            author: name of the user.
        """
        who = f"{author} <{author}@hub.test> {int(time.time())} +0000\n".encode()
        text = message.encode()
        stream = [f"feature done\ncommit {ref}\nmark :1\n".encode(), b"author ", who]
        stream += [b"committer ", who, b"data %d\n" % len(text), text, b"\n"]
        if parent:
            stream.append(f"from {parent}\n".encode())
        for path, data in changes.items():
            name = _quoted(path)
            if data is None:
                stream.append(b"D " + name + b"\n")
            else:
                stream += [b"M 100644 inline " + name + b"\ndata %d\n" % len(data), data, b"\n"]
        # Without `done` a stream that ends early, with its server, would be half a commit.
        stream.append(b"\nget-mark :1\ndone\n")
        return self._git("fast-import", "--quiet", stdin=b"".join(stream)).decode().strip()

    def history(self, commit: str, skip: int, count: int, path: str = "") -> list[Commit]:
        """Return commits, the newest first."""
        form = "--format=%H%x00%an%x00%cd%x00%s%x00%b%x01"
        limits = [f"--skip={skip}", f"--max-count={count}", *(["--", path] if path else [])]
        rows = self._git("log", DATE, form, commit, *limits).decode().split("\x01")[:-1]
        return [Commit(*(part.strip("\n") for part in row.split("\0"))) for row in rows]

    def create_ref(self, name: str, commit: str, message: str = "", author: str = "hub") -> None:
        """Create a branch, or a tag, which is an object of its own if it has a message.

        Raises:
            GitError: if there is one of that name, or the name is not allowed.
        """
        if message and name.startswith("refs/tags/"):
            self._git("tag", "-a", "-m", message, name[10:], commit, author=author)
        else:
            self._git("update-ref", name, commit, "0" * 40)

    def delete_ref(self, name: str) -> None:
        self._git("update-ref", "-d", name)


def _quoted(path: str) -> bytes:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'.encode()
