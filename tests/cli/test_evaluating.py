"""`salve evaluate`, and what `edit` and `apply --data` say that an edit costs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_artifacts import small_artifact, small_bundle

from salve_plugin import Assessment, EditArtifact
from salve_plugin.cli import main
from salve_plugin.cli.origins import NOTE_FILE
from salve_plugin.control.assessment.tables import prediction_lines

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Run a command; return its status and what it printed, lines unfolded."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([str(each) for each in arguments])
    printed = capsys.readouterr()
    return int(exit_info.value.code or 0), printed.out, printed.err


@pytest.fixture(scope="module")
def artifact(
    image_folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An edit of class 3 of a study, as the commands make it."""
    out = tmp_path_factory.mktemp("evaluated")
    model = ["--model", "test_resnet", "--checkpoint", str(checkpoint), "--num-classes", "10"]
    for command in (
        ["discover", *model, "--data", str(image_folder), "--out", str(out / "study"),
         "--latents", "16", "--json"],
        ["edit", str(out / "study"), "--class", "3", "--out", str(out / "edit"), "--json"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as exit_info:
            main(command)
        assert not exit_info.value.code
    return out / "edit"


def test_an_edit_is_printed_with_its_price_and_a_verdict_in_one_line(
    artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    stored = EditArtifact.from_pretrained(artifact).assessment
    assert stored is not None
    study = artifact.parent / "study"
    status, text, _ = run(capsys, "edit", study, "--class", "3", "--out", tmp_path / "again")
    assert status == 0
    assert stored.verdict in text.splitlines()
    assert "Class '3' (3) is suppressed, not removed" in stored.verdict
    for words in ("logit spread", "zeroed", "mask", "KL to ideal", "Budget: fc.weight rank"):
        assert words in text
    card = (artifact / "README.md").read_text()
    for words in ("## What the edit costs", "not removed", "| mask |", "--checkpoint FILE"):
        assert words in card
    assert [each.name for each in stored.controls][:2] == ["mask", "zero row"]
    enhanced = ("--class", "3", "--enhance", "--strength", 2, "--out", tmp_path / "more")
    status, text, _ = run(capsys, "edit", study, *enhanced, "--json")
    assert json.loads(text)["assessment"]["target"] is None
    assert "ideal" not in json.loads(text)["verdict"]


def test_what_an_artifact_says_of_its_edit_is_measured_again(
    artifact: Path, image_folder: Path, checkpoint: Path, capsys: Capture
) -> None:
    command = ("evaluate", artifact, "--data", image_folder, "--checkpoint", checkpoint)
    status, text, _ = run(capsys, *command)
    assert status == 0
    assert "It is as the artifact says (tolerance 1e-06)." in text
    status, text, _ = run(capsys, *command, "--json")
    found = json.loads(text)
    assert (status, found["same"], found["different"]) == (0, True, [])
    stored = EditArtifact.from_pretrained(artifact).assessment
    assert stored is not None
    measured = Assessment.from_json(found["assessment"])
    assert measured.effect == stored.effect
    assert found["verdict"] == stored.verdict
    assert [each.latents for each in measured.predictions] == [stored.predictions[0].latents]


def test_what_codes_predict_is_printed_and_compared_where_the_dictionary_is_known(
    artifact: Path, image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    loaded = EditArtifact.from_pretrained(artifact)
    assert loaded.assessment is not None
    lines = prediction_lines(loaded.assessment)
    assert len(lines) == 2
    assert {*lines} <= {*run(capsys, "inspect", artifact)[1].splitlines()}
    wrong = replace(loaded.assessment.predictions[0], slope=0.0)
    forged = replace(loaded, assessment=replace(loaded.assessment, predictions=(wrong,)))
    elsewhere = forged.save_pretrained(tmp_path / "elsewhere")
    command = ("--data", image_folder, "--checkpoint", checkpoint)
    status, text, _ = run(capsys, "evaluate", elsewhere, *command)
    assert status == 0  # the dictionary is not known there
    assert "predict was not measured again" in text
    note = json.loads((artifact / NOTE_FILE).read_text())
    (elsewhere / NOTE_FILE).write_text(json.dumps({**note, "artifact": forged.digest}))
    status, text, _ = run(capsys, "evaluate", elsewhere, *command, "--json")
    assert status == 2
    assert [each["field"] for each in json.loads(text)["different"]] == ["predictions[0].slope"]


def test_other_images_end_with_status_2_and_say_what_differs(
    artifact: Path, image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = Path(shutil.copytree(image_folder, tmp_path / "other"))
    first, second = sorted((other / "3").iterdir())[:2]
    shutil.copy(second, first)
    command = ("evaluate", artifact, "--data", other, "--checkpoint", checkpoint)
    status, text, _ = run(capsys, *command, "--json")
    fields = [each["field"] for each in json.loads(text)["different"]]
    assert status == 2
    assert "evidence.images" in fields
    assert "evidence.labels" not in fields
    status, text, _ = run(capsys, *command)
    assert status == 2
    assert "what differs" in text
    assert f"{len(fields)} values differ" in text


def test_what_cannot_be_measured_ends_with_status_1(
    artifact: Path, image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = ("--data", image_folder)
    bundle = small_bundle().save_pretrained(tmp_path / "bundle")
    assert "one by one: --subfolder NAME" in one_line(run(capsys, "evaluate", bundle, *data))
    loaded: Any = EditArtifact.from_pretrained(artifact)
    bare = EditArtifact(loaded.edit).save_pretrained(tmp_path / "bare")
    assert "no assessment" in one_line(run(capsys, "evaluate", bare, *data))
    foreign = small_artifact().save_pretrained(tmp_path / "foreign")
    options = ("--model", "test_resnet", "--checkpoint", checkpoint, "--num-classes", 10)
    assert "BaseMismatchError" in one_line(run(capsys, "evaluate", foreign, *data, *options))
    assert "is not an image folder" in one_line(
        run(capsys, "evaluate", artifact, "--data", tmp_path / "gone", "--checkpoint", checkpoint)
    )


def one_line(result: tuple[int, str, str]) -> str:
    """Return the message of a command that must end with status 1."""
    status, _, message = result
    assert status == 1
    return " ".join(message.split())


def test_apply_measures_with_the_network_what_edit_measured_on_the_recording(
    artifact: Path, image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    stored = EditArtifact.from_pretrained(artifact).assessment
    assert stored is not None
    command = (
        "apply", artifact, "--checkpoint", checkpoint, "--data", image_folder,
        "--out", tmp_path / "edited.safetensors",
    )  # fmt: skip
    status, text, _ = run(capsys, *command, "--json")
    found = json.loads(text)
    assert status == 0
    assert found["verdict"] == stored.verdict
    assert found["assessment"]["evidence"]["images"] == stored.evidence.images
    assert found["accuracy_after"] == stored.effect.accuracy
    status, text, _ = run(capsys, *command)
    assert stored.verdict in text.splitlines()
