"""Saving over an older artifact: all or nothing, whatever goes wrong."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from small_artifacts import altered, contents

from salve_plugin.control.edit import Edit
from salve_plugin.errors import ArtifactError, WriteError
from salve_plugin.share.artifact import EditArtifact


def test_an_older_artifact_is_replaced_and_other_files_stay(
    tiny: EditArtifact, tiny_edit: Edit, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").write_bytes(b"not ours")
    (tmp_path / "old" / "picture_mine.png").write_bytes(b"not ours either")
    new = EditArtifact(altered(tiny_edit, strength=0.5))
    new.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "fresh")
    assert contents(tmp_path / "old") == {
        **contents(tmp_path / "fresh"),
        "model.safetensors": b"not ours",
        "picture_mine.png": b"not ours either",
    }


def test_a_picture_that_somebody_changed_is_not_removed(tiny: EditArtifact, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    (tmp_path / "picture_heat_map.png").write_bytes(b"retouched")
    replace(tiny, pictures=None).save_pretrained(tmp_path)
    assert (tmp_path / "picture_heat_map.png").read_bytes() == b"retouched"


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_an_error_in_the_middle_leaves_the_old_artifact_whole(
    tiny: EditArtifact, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_pretrained(tmp_path)
    before = contents(tmp_path)
    real, calls = os.replace, []

    def full(source: object, target: object) -> None:
        if Path(str(target)).parent == tmp_path:
            calls.append(target)
            if len(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(str(source), str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match="No space left"):
        replace(tiny, labels=None).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert EditArtifact.verify(tmp_path) == tiny.digest


SAVE_FOREVER = """
import sys
from dataclasses import replace
from salve_plugin.share.artifact import EditArtifact
one = EditArtifact.from_pretrained(sys.argv[1])
other = replace(one, data={"name": "other"}, pictures=None)
print("ready", flush=True)
while True:
    for artifact in (other, one):
        artifact.save_pretrained(sys.argv[1])
"""


DIE_AT_THE_THIRD_RENAME = """
import os, sys
from dataclasses import replace
from pathlib import Path
from salve_plugin.share.artifact import EditArtifact
old = EditArtifact.from_pretrained(sys.argv[1])
real, count = os.replace, 0
def rename(source, target):
    global count
    if Path(target).parent == Path(sys.argv[1]):
        count += 1
        if count == 3:
            os._exit(9)
    real(source, target)
os.replace = rename
replace(old, alpha_crit=None).save_pretrained(sys.argv[1])
"""


def test_a_crash_between_two_renames_leaves_a_folder_that_is_refused_and_can_be_saved_again(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    before = contents(tmp_path)
    command = [sys.executable, "-c", DIE_AT_THE_THIRD_RENAME, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    assert (tmp_path / "edit.safetensors").read_bytes() != before["edit.safetensors"]
    with pytest.raises(ArtifactError, match=r"edit\.safetensors has"):
        EditArtifact.verify(tmp_path)
    tiny.save_pretrained(tmp_path)
    assert EditArtifact.verify(tmp_path) == tiny.digest


@pytest.mark.slow
def test_a_killed_save_leaves_an_artifact_that_is_whole_or_refused(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    allowed = {tiny.digest, replace(tiny, data={"name": "other"}).digest}
    for wait in (0.0, 0.013, 0.031):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with suppress(ArtifactError):
            assert EditArtifact.verify(tmp_path) in allowed
        tiny.save_pretrained(tmp_path)
        assert EditArtifact.verify(tmp_path) == tiny.digest
