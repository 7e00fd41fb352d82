"""A concept in two folders, removed from a study's model by one command."""

import json
from pathlib import Path

import pytest
from PIL import Image

from salve_plugin import (
    Choice,
    EditArtifact,
    EditBundle,
    RemoveConcept,
    attach,
    erase,
    erase_through,
    find_concept,
    record,
)
from salve_plugin.cli import main, removing
from salve_plugin.control.choosing.candidate import Candidate
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[1] / "fixtures"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def plain(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the pictures."""
    folder = tmp_path_factory.mktemp("plain")
    for path in sorted(image_folder.glob("*/*.png"))[::2]:
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def marked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures with a white square."""
    folder = tmp_path_factory.mktemp("marked")
    for path in sorted(plain.glob("*/*.png")):
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
    study: Path, marked: Path, plain: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "edit"
    arguments = ("edit", study, "--out", out, "--remove", marked, "--without", plain)
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


def test_hidden_edits_that_are_chosen_make_a_bundle(
    digits_test: digits.Split, tmp_path: Path
) -> None:
    hooked = attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))
    plain = digits_test.images[:40]
    marked = plain.clone()
    marked[:, :, :3] = marked.max()
    sites = ["blocks.1.ln1.hook_normalized", "blocks.2.ln1.hook_normalized"]
    hidden = erase_through(hooked, marked, plain, sites, "repair")
    acts = [record(hooked, [(x, digits_test.labels[:40])], progress=False) for x in (marked, plain)]
    concept = find_concept(acts[0], without=acts[1])
    edit = erase(hooked, concept)
    start = Candidate("no edit", edit, 0.0, 0.0, {"flips": 0.5})
    chosen = Candidate("after hidden edits", edit, 0.8, 0.0, {"flips": 0.1}, hidden=hidden)
    choice = Choice(RemoveConcept(concept), chosen, True, (start, chosen), 0.7)
    bundle = removing.bundle_of(hooked, choice, digits.CLASSES, {"name": "digits"})
    assert list(bundle.members) == [
        "blocks-1-ln1-hook_normalized", "blocks-2-ln1-hook_normalized", "unembed-hook_in"
    ]  # fmt: skip
    assert bundle.evaluation == {"before": {"flips": 0.5}, "after": {"flips": 0.1}}
    bundle.save_pretrained(tmp_path / "bundle")
    assert EditBundle.from_pretrained(tmp_path / "bundle").digest == bundle.digest


def test_hidden_layers_need_the_folders(study: Path, tmp_path: Path, capsys: Capture) -> None:
    assert _run("edit", study, "--out", tmp_path / "edit", "--hidden", "--class", "3") == 1
    assert "--hidden goes with" in capsys.readouterr().err
