"""A concept in two folders, removed from a study's model by one command."""

import json
from pathlib import Path

import pytest
from PIL import Image

from salve_plugin import EditArtifact
from salve_plugin.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def marked(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures with a white square."""
    folder = tmp_path_factory.mktemp("marked")
    for path in sorted(image_folder.glob("*/*.png")):
        with Image.open(path) as image:
            picture = image.convert("RGB")
        side = picture.width // 4
        picture.paste((255, 255, 255), (0, 0, side, side))
        (folder / path.parent.name).mkdir(exist_ok=True)
        picture.save(folder / path.parent.name / path.name)
    return folder


def _run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_pairs_are_found_and_the_artifact_says_what_it_cost(
    study: Path, marked: Path, image_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "edit"
    arguments = ("edit", study, "--out", out, "--remove", marked, "--without", image_folder)
    assert _run(*arguments, "--json", "--max-harm", 0.05) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["choice"]["goal"] == "RemoveConcept"
    assert said["choice"]["chosen"]["harm"] <= 0.05
    artifact = EditArtifact.from_pretrained(out)
    assert artifact.digest == said["sha256"]
    assert artifact.assessment is not None
    before, after = artifact.assessment.concept, artifact.assessment.effect.concept
    assert before is not None
    assert after is not None
    assert "held-out AUC" in artifact.edit.provenance.note
    assert _run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "candidates" in printed
    assert "effect" in printed


def test_folders_that_are_no_pairs_are_a_shortcut(
    study: Path, marked: Path, image_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    fewer = tmp_path / "fewer"
    for path in sorted(image_folder.glob("*/*.png"))[::2]:
        (fewer / path.parent.name).mkdir(parents=True, exist_ok=True)
        (fewer / path.parent.name / f"other-{path.name}").write_bytes(path.read_bytes())
    out = tmp_path / "edit"
    assert _run("edit", study, "--out", out, "--remove", marked, "--without", fewer, "--json") == 0
    assert json.loads(capsys.readouterr().out)["choice"]["goal"] == "RemoveShortcut"


def test_half_a_request_is_refused(
    study: Path, marked: Path, image_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "edit"
    assert _run("edit", study, "--out", out, "--remove", marked) == 1
    assert "go together" in capsys.readouterr().err
    both = ("--remove", marked, "--without", image_folder)
    assert _run("edit", study, "--out", out, *both, "--class", "3") == 1
    assert "--class is about another" in capsys.readouterr().err
    assert not out.exists()
