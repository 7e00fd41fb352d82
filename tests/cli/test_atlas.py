"""`salve atlas`: the pages of a study, where they go, and the line that they write."""

import json
import shutil
from pathlib import Path

import pytest
from command import run

from salve_plugin.errors import ReadError
from salve_plugin.share.artifact import EditArtifact

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(image_folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of images of its own, which tests may take away."""
    from salve_plugin.cli import main

    folder = tmp_path_factory.mktemp("studied")
    shutil.copytree(image_folder, folder / "images")
    with pytest.raises(SystemExit) as exit_info:
        main(["discover", "--model", "test_resnet", "--checkpoint", str(checkpoint),
              "--num-classes", "10", "--data", str(folder / "images"),
              "--out", str(folder / "study"), "--latents", "12", "--learner", "itda",
              "--json"])  # fmt: skip
    assert exit_info.value.code in (0, None)
    return folder


def test_a_study_becomes_pages_beside_it(made: Path, capsys: Capture) -> None:
    status, said = run(capsys, "atlas", made / "study", "--no-quality", "--maps", 2)
    assert status == 0, said
    page = made / "study" / "atlas" / "index.html"
    assert said["atlas"] == str(page)
    assert said["address"] == page.resolve().as_uri()
    assert said["missing"] == []
    assert said["bytes"] == sum(
        file.stat().st_size for file in page.parent.rglob("*.*") if file.is_file()
    )
    index = (page.parent / "data" / "index.js").read_text()
    assert '"title":"test_resnet on images"' in index
    assert '"evidence":{"auc":' in index
    assert '"curve":' in (page.parent / "data" / "latents" / "0.js").read_text()
    assert (page.parent / "data" / "images" / "0.js").exists()
    again, _ = run(capsys, "atlas", made / "study", "--no-quality", "--no-evidence", "--maps", 0)
    assert again == 0
    assert '"evidence":null' in (page.parent / "data" / "index.js").read_text()


def test_too_few_images_to_measure_a_dictionary_on_are_enough_to_look_at(
    image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    for label in ("3", "8"):
        (tmp_path / "few" / label).mkdir(parents=True)
        for image in sorted((image_folder / label).iterdir())[:3]:
            shutil.copy(image, tmp_path / "few" / label)
    options = ("--model", "test_resnet", "--checkpoint", checkpoint, "--num-classes", "10")
    learner = ("--latents", "4", "--learner", "itda")
    study = tmp_path / "study"
    assert (
        run(capsys, "discover", *options, "--data", tmp_path / "few", "--out", study, *learner)[0]
        == 0
    )
    status, said = run(capsys, "atlas", study, "--maps", 0)
    assert status == 0, said
    (note,) = said["missing"]
    assert note.startswith("no quality: ")
    assert (study / "atlas" / "index.html").exists()


@pytest.mark.slow
def test_the_dictionary_stands_beside_its_controls(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(capsys, "atlas", made / "study", "--maps", 0, "--out", tmp_path)[0] == 0
    index = (tmp_path / "data" / "index.js").read_text()
    assert '"columns":["dictionary","random","frozen"' in index


def test_the_line_that_the_bench_writes_makes_the_edit(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    line = (
        "edit", made / "study", "--class=3", "--latent", "2", "--rows", "3,5", "--strength", "6.5",
        "--out", tmp_path / "edit",
    )  # fmt: skip
    status, _ = run(capsys, *line)
    assert status == 0
    edit = EditArtifact.from_pretrained(tmp_path / "edit").edit
    assert (edit.latent, edit.rows, edit.strength) == (2, (3, 5), 6.5)


def test_an_artifact_has_a_page_of_its_own(
    made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = ("edit", made / "study", "--class=3", "--rows", "class", "--latent", 1, "--strength", 5)
    assert run(capsys, *edit, "--pictures", 1, "--out", tmp_path / "edit")[0] == 0
    status, said = run(capsys, "atlas", tmp_path / "edit")
    assert status == 0
    page = Path(said["atlas"])
    assert page == tmp_path / "edit-atlas" / "index.html"
    text = (page.parent / "data" / "index.js").read_text()
    content = json.loads(text.removeprefix('atlas.provide("index",').removesuffix(");\n"))
    artifact = EditArtifact.from_pretrained(tmp_path / "edit")
    shown, assessment = content["artifact"], artifact.assessment
    assert assessment is not None
    assert content["about"]["digest"] == artifact.digest
    assert shown["assessment"]["verdict"] == assessment.verdict
    assert shown["assessment"]["effects"][1]["target"] == assessment.effect.target
    assert [each["name"] for each in shown["crit"]] == ["3"]
    assert shown["pictures"][0]["source"].startswith("data:image/png;base64,")
    assert run(capsys, "atlas", tmp_path / "edit")[0] == 0
    for option in (("--maps", 3), ("--no-quality",), ("--maximize", 1)):
        status, said = run(capsys, "atlas", tmp_path / "edit", *option)
        assert (status, said["error"]) == (1, "InputError")
        assert "takes no effect here: an artifact's page" in said["message"]
    monkeypatch.chdir(tmp_path / "edit")
    assert run(capsys, "atlas", ".")[1]["atlas"] == str(page)


def test_somebody_elses_files_and_the_images_are_left_alone(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "index.html").write_text("mine")
    arguments = ("atlas", made / "study", "--no-quality", "--maps", 0, "--out")
    status, said = run(capsys, *arguments, tmp_path)
    assert (status, said["error"]) == (1, "InputError")
    assert (tmp_path / "index.html").read_text() == "mine"
    assert run(capsys, *arguments, made / "images" / "atlas")[0] == 1
    assert run(capsys, *arguments, tmp_path, "--force")[0] == 0


def test_an_atlas_without_images_says_so(made: Path, tmp_path: Path, capsys: Capture) -> None:
    (made / "images").rename(made / "elsewhere")
    try:
        status, said = run(capsys, "atlas", made / "study", "--no-quality", "--out", tmp_path)
    finally:
        (made / "elsewhere").rename(made / "images")
    assert status == 0
    (note,) = said["missing"]
    assert note.startswith("no pictures: ")
    assert not (tmp_path / "data" / "images").exists()


def test_what_is_no_study_is_refused(tmp_path: Path, capsys: Capture) -> None:
    status, said = run(capsys, "atlas", tmp_path)
    assert (status, said["error"]) == (1, ReadError.__name__)
