"""What a caller asks of the Hub, checked, and what an artifact says of where it came from."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from salve_plugin.errors import InputError
from salve_plugin.store.files import usable
from salve_plugin.store.hub.access import Access
from salve_plugin.store.json import shortened
from salve_plugin.store.reference import Reference, check_repo_id, check_subfolder

Resolved = Literal["pinned", "hub", "cache"]
"""How a revision became a commit: it was one; the Hub said so; the cache remembers what the Hub
said when it was last asked, which may no longer hold."""

F = TypeVar("F", bound="HubFolder")
DEFAULT_REVISION = "main"
MAX_REVISION = 250
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")


@dataclass(frozen=True)
class HubFolder:
    """A folder of a Hub repository, as a caller names it.

    Raises:
        InputError: if a part is ill-formed, or two contradict each other.
    """

    repo_id: str
    revision: str | None = None
    subfolder: str | None = None
    access: Access = field(default_factory=Access)

    def __post_init__(self) -> None:
        """Check the parts before any of them becomes a part of a path or an address."""
        check_repo_id(self.repo_id)
        check_subfolder(self.subfolder)
        check_revision(self.revision)

    @classmethod
    def of(cls: type[F], repo_id: str, arguments: Mapping[str, Any]) -> F:
        """Return the folder that a caller's further arguments name, see `Where` and `How`.

        Raises:
            InputError: if there is no such argument, or its value is ill-formed.
        """
        names = [each.name for each in fields(cls) if each.name not in ("repo_id", "access")]
        unknown = sorted(arguments.keys() - {*names, "endpoint", "token"})
        if unknown:
            raise InputError(
                f"there is no argument {unknown[0]!r}; there are {[*names, 'endpoint', 'token']}"
            )
        others = dict(arguments)
        access = Access(others.pop("endpoint", None), others.pop("token", None))
        return cls(repo_id, access=access, **others)

    def path_of(self, name: str) -> str:
        """Return the path of a file in the repository."""
        return name if self.subfolder is None else f"{self.subfolder}/{name}"

    def __str__(self) -> str:
        """Return "user/name/subfolder"."""
        return self.repo_id if self.subfolder is None else f"{self.repo_id}/{self.subfolder}"


@dataclass(frozen=True)
class Address(HubFolder):
    """What is to be read, see `salve_plugin.store.source.Where`."""

    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __post_init__(self) -> None:
        """Check the parts."""
        super().__post_init__()
        if self.cache_dir is not None:
            usable(self.cache_dir)
        if self.local_files_only and self.force_download:
            raise InputError(
                "force_download=True needs the network, which local_files_only=True forbids; "
                "leave one of them out"
            )


@dataclass(frozen=True)
class Origin:
    """Where an artifact came from, exactly.

    Attributes:
        reference: repository, commit and subfolder; pass its commit as `revision` to get the
            very same files again.
        revision: the branch, tag or commit that was asked for.
        resolved: how it became the commit; "cache" may be out of date.
        from_cache: whether every file was in the cache already, so that none was downloaded.
        digest: the identity of what was read there.
    """

    reference: Reference
    revision: str
    resolved: Resolved
    from_cache: bool
    digest: str | None = None

    def inside(self, name: str, digest: str) -> "Origin":
        """Return the exact place of a thing in a subfolder of this place."""
        subfolder = self.reference.subfolder
        path = name if subfolder is None else f"{subfolder}/{name}"
        return replace(self, reference=replace(self.reference, subfolder=path), digest=digest)


def check_revision(revision: str | None) -> None:
    """Raise InputError unless this is None or could be the name of a branch, tag or commit."""
    if revision is not None and (
        not isinstance(revision, str)
        or len(revision) > MAX_REVISION
        or ".." in revision
        or not _REVISION.fullmatch(revision)
    ):
        raise InputError(
            f"revision {shortened(revision, 100)} is not the name of a branch or tag, or a commit; "
            "expected names of letters, digits, '-', '_', '+' and '.', joined by '/'"
        )
