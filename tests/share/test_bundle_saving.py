"""Saving over an older bundle: all or nothing, and nothing of others is lost."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_artifacts import (
    altered,
    small_artifact,
    small_bundle,
    small_edit,
    small_model,
    tree,
    with_edit,
)

from salve_plugin.errors import ArtifactError, InputError, MissingFileError, WriteError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle

CARD = "README.md"


def fewer() -> EditBundle:
    """Return another bundle of the same base: a member left out, one changed, one new."""
    old = small_bundle()
    changed = replace(
        old.members["rows"],
        edit=altered(small_edit(), strength=0.25),
        assessment=None,
        pictures=None,
    )
    new = EditArtifact(altered(small_edit(), latent=9, rows=(0,)))
    members = {"all": old.members["all"], "rows": changed, "new": new}
    return EditBundle.of(small_model(), members)


def test_an_older_bundle_is_replaced_and_other_files_stay(
    saved_bundle: Path, tmp_path: Path
) -> None:
    (saved_bundle / "notes.txt").write_bytes(b"mine")
    (saved_bundle / "first" / "notes.txt").write_bytes(b"mine too")
    fewer().save_pretrained(saved_bundle)
    fresh = tree(fewer().save_pretrained(tmp_path / "fresh"))
    assert tree(saved_bundle) == {**fresh, "notes.txt": b"mine", "first/notes.txt": b"mine too"}
    (saved_bundle / "first" / "notes.txt").unlink()
    small_bundle().save_pretrained(saved_bundle)
    assert not (saved_bundle / "new").exists()
    assert EditBundle.verify(saved_bundle) == small_bundle().digest


def test_a_left_out_member_that_somebody_changed_is_not_removed(saved_bundle: Path) -> None:
    other = with_edit(replace(small_artifact(), pristine=None), replace(small_edit(), rows=(0,)))
    other.save_pretrained(saved_bundle / "first")
    (saved_bundle / "rows" / CARD).write_text("# My words\n")
    members = {"all": small_bundle().members["all"]}
    EditBundle.of(small_model(), members).save_pretrained(saved_bundle)
    assert EditArtifact.verify(saved_bundle / "first") == other.digest
    assert set(tree(saved_bundle / "rows")) == {CARD}
    assert EditBundle.verify(saved_bundle) == EditBundle.of(small_model(), members).digest


def test_peoples_words_in_cards_stay(saved_bundle: Path) -> None:
    for card in (saved_bundle / CARD, saved_bundle / "rows" / CARD):
        card.write_text("# My words\n")
    fewer().save_pretrained(saved_bundle)
    for card in (saved_bundle / CARD, saved_bundle / "rows" / CARD):
        assert card.read_text().endswith("# My words\n")
    assert "# Tiny with" in (saved_bundle / "all" / CARD).read_text()


def test_a_bundle_is_not_written_over_an_artifact(tmp_path: Path) -> None:
    small_artifact().save_pretrained(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="choose another folder"):
        small_bundle().save_pretrained(tmp_path)
    assert tree(tmp_path) == before
    with pytest.raises(MissingFileError, match=r"edit_bundle\.json"):
        EditBundle.from_pretrained(tmp_path)


def test_an_artifact_is_not_written_over_a_bundle(saved_bundle: Path) -> None:
    before = tree(saved_bundle)
    with pytest.raises(InputError, match=r"an edit bundle lies .* choose another folder"):
        small_artifact().save_pretrained(saved_bundle)
    assert tree(saved_bundle) == before


@pytest.mark.parametrize("failing", range(1, 13))
def test_an_error_in_the_middle_leaves_the_old_bundle_whole(
    saved_bundle: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, new = tree(saved_bundle), fewer()
    real, calls = os.replace, []

    def full(source: object, target: object) -> None:
        if ".salve-" not in str(target):
            calls.append(target)
            if len(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(str(source), str(target))

    monkeypatch.setattr(os, "replace", full)
    if failing == 12:  # eleven files: the last case shows that every rename was met
        new.save_pretrained(saved_bundle)
        assert len(calls) == 11
        return
    with pytest.raises(WriteError, match="No space left"):
        new.save_pretrained(saved_bundle)
    monkeypatch.undo()
    assert tree(saved_bundle) == before
    assert [path.name for path in saved_bundle.iterdir() if path.is_dir()].count("new") == 0
    assert EditBundle.verify(saved_bundle) == small_bundle().digest


DIE_AT_A_RENAME = """
import os, sys
from salve_plugin.share.bundle import EditBundle
old, new, last = sys.argv[1], EditBundle.from_pretrained(sys.argv[2]), int(sys.argv[3])
real, count = os.replace, 0
def rename(source, target):
    global count
    if ".salve-" not in str(target):
        count += 1
        if count == last:
            os._exit(9)
    real(source, target)
os.replace = rename
new.save_pretrained(old)
"""


@pytest.mark.parametrize(("last", "accepted"), [(9, True), (10, False), (11, False)])
def test_a_crash_between_two_renames_leaves_the_old_bundle_or_one_that_is_refused(
    saved_bundle: Path, tmp_path: Path, last: int, accepted: bool
) -> None:
    new = fewer().save_pretrained(tmp_path / "new")
    command = [sys.executable, "-c", DIE_AT_A_RENAME, str(saved_bundle), str(new), str(last)]
    assert subprocess.run(command, check=False).returncode == 9
    if accepted:  # no file that the old bundle knows of has other bytes yet
        assert EditBundle.verify(saved_bundle) == small_bundle().digest
    else:
        with pytest.raises(ArtifactError, match=r"was changed|has \d+ bytes"):
            EditBundle.verify(saved_bundle)
    fewer().save_pretrained(saved_bundle)
    assert EditBundle.verify(saved_bundle) == fewer().digest


def test_saving_packs_each_member_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member is described and encoded once, and described once more when it is read back."""
    from salve_plugin.share import artifact

    members = small_bundle().members
    bundle = EditBundle.of(small_model(), {name: members[name] for name in ("all", "first")})
    calls = {"manifest_of": 0, "encode_tensors": 0, "decode_tensors": 0}

    def counted(name: str) -> None:
        real = getattr(artifact, name)

        def call(*arguments: object) -> object:
            calls[name] += 1
            return real(*arguments)

        monkeypatch.setattr(artifact, name, call)

    for name in calls:
        counted(name)
    bundle.save_pretrained(tmp_path)
    assert calls == {"manifest_of": 4, "encode_tensors": 2, "decode_tensors": 2}
    assert bundle.digest == EditBundle.verify(tmp_path)
    bundle.save_pretrained(tmp_path)
    assert calls["encode_tensors"] == 4
