"""Addresses of folders in commits."""

import pytest

from salve_plugin.errors import InputError
from salve_plugin.store.reference import MAX_SUBFOLDER, Reference, check_subfolder

COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_a_reference_survives_as_json_and_shows_itself() -> None:
    for subfolder in (None, "a", "a/b.c/d-e_f"):
        reference = Reference("me/edit", COMMIT, subfolder)
        assert Reference.from_json(reference.to_json()) == reference
    assert str(Reference("me/edit", COMMIT, "a/b")) == f"me/edit/a/b@{COMMIT}"
    assert str(Reference("me/edit", COMMIT)) == f"me/edit@{COMMIT}"


@pytest.mark.parametrize(
    "fields",
    [
        None,
        {"repo_id": "me/edit", "commit": COMMIT},
        {"repo_id": "me/edit", "commit": COMMIT, "subfolder": None, "more": 1},
        {"repo_id": 1, "commit": COMMIT, "subfolder": None},
        {"repo_id": "me/edit", "commit": "main", "subfolder": None},
        {"repo_id": "me/edit", "commit": COMMIT.upper(), "subfolder": None},
        {"repo_id": "me/edit", "commit": COMMIT + "\n", "subfolder": None},
        {"repo_id": "edit", "commit": COMMIT, "subfolder": None},
        {"repo_id": "me/edit/more", "commit": COMMIT, "subfolder": None},
        {"repo_id": "me/..", "commit": COMMIT, "subfolder": None},
        {"repo_id": "me/edit", "commit": COMMIT, "subfolder": ""},
    ],
)
def test_an_ill_formed_reference_is_refused(fields: object) -> None:
    with pytest.raises(InputError):
        Reference.from_json(fields)


@pytest.mark.parametrize(
    "subfolder",
    ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "a/../b", ".git", "a/.b", "a\\b", "a b", "a\n",
     "-a", "a" * (MAX_SUBFOLDER + 1)],
)  # fmt: skip
def test_only_plain_relative_paths_are_subfolders(subfolder: str) -> None:
    with pytest.raises(InputError, match="not a path inside the repository"):
        check_subfolder(subfolder)
