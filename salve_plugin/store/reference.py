"""A folder in one commit of a Hub repository: an address that always means the same bytes."""

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from salve_plugin.errors import InputError
from salve_plugin.store.json import shortened
from salve_plugin.store.record import Record

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO_ID = re.compile(rf"{_NAME}/{_NAME}")
_FOLDER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_SUBFOLDER = re.compile(rf"{_FOLDER}(/{_FOLDER})*")
MAX_SUBFOLDER = 500


@dataclass(frozen=True)
class Reference(Record):
    """Where something lies on the Hub, pinned.

    Attributes:
        repo_id: "user/name".
        commit: 40 hexadecimal digits.
        subfolder: inside the repository, None for its root.

    Raises:
        InputError: if a part is ill-formed.
    """

    repo_id: Annotated[str, Meta(pattern=rf"^(?!.*(\.\.|--)){_NAME}/{_NAME}$(?!\n)")]
    commit: Annotated[str, Meta(pattern="^[0-9a-f]{40}$", max_length=40)]
    subfolder: (
        Annotated[str, Meta(pattern=rf"^{_FOLDER}(/{_FOLDER})*$(?!\n)", max_length=MAX_SUBFOLDER)]
        | None
    ) = None

    def __post_init__(self) -> None:
        """Check the parts."""
        # The patterns in the types are asked of files only.
        check_repo_id(self.repo_id)
        check_subfolder(self.subfolder)
        if not COMMIT.fullmatch(self.commit):
            raise InputError(
                f"commit {self.commit[:60]!r} is not the full id of a commit: 40 lower-case "
                "hexadecimal digits"
            )

    def __str__(self) -> str:
        """Return "user/name/subfolder@commit"."""
        place = self.repo_id if self.subfolder is None else f"{self.repo_id}/{self.subfolder}"
        return f"{place}@{self.commit}"


def is_repo_id(name: object) -> bool:
    """Tell whether this is the name of a Hub repository, "user/name"."""
    if not isinstance(name, str):
        return False
    # As the Hub itself wants it; a local path such as "../x" is never asked for there.
    return _REPO_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def check_repo_id(repo_id: str) -> None:
    """Raise InputError unless this is the name of a Hub repository."""
    if not is_repo_id(repo_id):
        raise InputError(
            f"{shortened(repo_id, 200)} is not the name of a Hub repository; expected 'user/name' "
            "of letters, digits, '-', '_' and '.', without '--' and '..'"
        )


def check_subfolder(subfolder: str | None) -> None:
    """Raise InputError unless this is None or a relative path of plain names."""
    if subfolder is not None and (
        not isinstance(subfolder, str)
        or len(subfolder) > MAX_SUBFOLDER
        or not _SUBFOLDER.fullmatch(subfolder)
    ):
        raise InputError(
            f"subfolder {shortened(subfolder, 200)} is not a path inside the repository; expected "
            "names of letters, digits, '-', '_' and '.' (not as the first letter), joined by '/'"
        )
