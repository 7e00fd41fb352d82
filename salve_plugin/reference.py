"""A folder in one commit of a Hub repository: an address that always means the same bytes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from salve_plugin.errors import InputError

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO_ID = re.compile(rf"{_NAME}/{_NAME}")
_FOLDER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_SUBFOLDER = re.compile(rf"{_FOLDER}(/{_FOLDER})*")
MAX_SUBFOLDER = 500


@dataclass(frozen=True)
class Reference:
    """Where something lies on the Hub, pinned.

    Attributes:
        repo_id: "user/name".
        commit: 40 hexadecimal digits.
        subfolder: inside the repository, None for its root.

    Raises:
        InputError: if a part is ill-formed.
    """

    repo_id: str
    commit: str
    subfolder: str | None = None

    def __post_init__(self) -> None:
        """Check the parts."""
        check_repo_id(self.repo_id)
        check_subfolder(self.subfolder)
        if not COMMIT.fullmatch(self.commit):
            raise InputError(
                f"commit {self.commit[:60]!r} is not the full id of a commit: 40 lower-case "
                "hexadecimal digits"
            )

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values."""
        return {"repo_id": self.repo_id, "commit": self.commit, "subfolder": self.subfolder}

    @classmethod
    def from_json(cls, fields: object) -> "Reference":
        """Rebuild a reference from `to_json`.

        Raises:
            InputError: if a field is missing, unknown, ill-typed or ill-formed.
        """
        if not isinstance(fields, Mapping) or set(fields) != {"repo_id", "commit", "subfolder"}:
            raise InputError(
                f"a reference has the fields commit, repo_id and subfolder; got {fields!r}"
            )
        repo_id, commit, subfolder = fields["repo_id"], fields["commit"], fields["subfolder"]
        if not (isinstance(repo_id, str) and isinstance(commit, str)) or not (
            subfolder is None or isinstance(subfolder, str)
        ):
            raise InputError(f"ill-typed reference {fields!r}")
        return cls(repo_id, commit, subfolder)

    def __str__(self) -> str:
        """Return "user/name/subfolder@commit"."""
        place = self.repo_id if self.subfolder is None else f"{self.repo_id}/{self.subfolder}"
        return f"{place}@{self.commit}"


def check_repo_id(repo_id: str) -> None:
    """Raise InputError unless this is the name of a Hub repository."""
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise InputError(
            f"{repo_id[:200]!r} is not the name of a Hub repository; expected 'user/name' of "
            "letters, digits, '-', '_' and '.', without '--' and '..'"
        )


def check_subfolder(subfolder: str | None) -> None:
    """Raise InputError unless this is None or a relative path of plain names."""
    if subfolder is not None and (
        len(subfolder) > MAX_SUBFOLDER or not _SUBFOLDER.fullmatch(subfolder)
    ):
        raise InputError(
            f"subfolder {subfolder[:200]!r} is not a path inside the repository; expected names "
            "of letters, digits, '-', '_' and '.' (not as the first letter), joined by '/'"
        )
