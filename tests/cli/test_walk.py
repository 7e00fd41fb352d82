"""A Lightning checkpoint and a folder of photographs as phones leave them, through the commands."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run
from hub_client import LoopbackHub
from PIL import Image
from safetensors.torch import load_file, save_file

from salve_plugin.cli import main

Capture = pytest.CaptureFixture[str]

JUNK = ("3/IMG_0001.HEIC", "4/IMG_0002.JPG", "new folder")


@pytest.fixture(scope="module")
def photos(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files, some on their side as EXIF says, and what else lies in such folders."""
    folder = tmp_path_factory.mktemp("phone") / "photos"
    for number, path in enumerate(sorted(image_folder.glob("*/*.png"))):
        target = folder / path.parent.name / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        with Image.open(path) as picture:
            turned = number % 3 == 0
            if turned:  # held upright, stored lying
                exif[0x0112] = 6
            pixels = picture.convert("RGB")
            lying = pixels.transpose(Image.Transpose.ROTATE_90) if turned else pixels
            lying.save(target, exif=exif, quality=100, subsampling=0)
    (folder / JUNK[0]).write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(64))
    whole = (folder / "4" / "000.jpg").read_bytes()
    (folder / JUNK[1]).write_bytes(whole[: len(whole) * 2 // 3])
    (folder / JUNK[2]).mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "3" / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def lightning(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Lightning's trainer writes for a module that has the network as `self.model`."""
    state = {f"model.{name}": tensor for name, tensor in load_file(checkpoint).items()}
    saved = {
        "epoch": 4,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "args",
        "hyper_parameters": {"args": argparse.Namespace(lr=1e-3, root=Path("photos"))},
    }
    path = tmp_path_factory.mktemp("lightning") / "last.ckpt"
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def discover(photos: Path, lightning: Path) -> list[object]:
    return ["discover", "--model", "test_resnet", "--checkpoint", lightning, "--data", photos,
            "--latents", 16]  # fmt: skip


@pytest.fixture(scope="module")
def study(discover: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "study"
    with pytest.raises(SystemExit) as exit_info:
        main([*map(str, discover), "--skip-unreadable", "--out", str(out), "--json"])
    assert exit_info.value.code == 0
    return out


@pytest.fixture(scope="module")
def artifact(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "no-threes"
    with pytest.raises(SystemExit) as exit_info:
        main(["edit", str(study), "--class", "3", "--out", str(out), "--json"])
    assert exit_info.value.code == 0
    return out


def done(capsys: Capture, *arguments: object) -> dict[str, Any]:
    status, told = run(capsys, *arguments)
    assert status == 0, told
    return told


def refused(capsys: Capture, *arguments: object) -> str:
    status, told = run(capsys, *arguments)
    assert status == 1, told
    message: str = told["message"]
    assert "\n" not in message
    return message


def test_junk_is_refused_by_name_or_left_out_with_a_count(
    discover: list[object], photos: Path, study: Path, tmp_path: Path, capsys: Capture
) -> None:
    message = refused(capsys, *discover, "--out", tmp_path / "a")
    assert "no image is in new folder" in message
    assert "--skip-unreadable" in message
    assert not (tmp_path / "a").exists()
    less = shutil.copytree(photos, tmp_path / "less")
    (less / JUNK[2]).rmdir()
    command = [*discover[:6], less, *discover[7:], "--out", tmp_path / "b"]
    for name in JUNK[:2]:
        message = refused(capsys, *command)
        assert f"{less / name} cannot be read as an image" in message
        (less / name).unlink()
    told = done(capsys, *discover, "--skip-unreadable", "--out", study)  # once more
    assert told["left_out"] == sorted(JUNK)
    assert (told["images"], told["classes_with_images"]) == (120, 10)
    with pytest.raises(SystemExit):
        main([*map(str, discover), "--skip-unreadable", "--out", str(study)])
    assert "3 unreadable images or subfolders without any" in capsys.readouterr().err


def test_one_class_has_one_latent_and_rows(
    study: Path, artifact: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = photos / "3" / "000.jpg"
    made = done(capsys, "inspect", artifact)["edit"]
    latent, rows = made["provenance"]["latents"][0], made["rows"]
    for place, about in ((study, ("--class", "3")), (artifact, ())):
        # A study's pictures are in one scale with the latent's own, an artifact's are alone.
        out = tmp_path / f"overlays-{place.name}"
        explained = done(capsys, "explain", place, image, *about, "--out", out)
        critical = done(capsys, "alpha-crit", place, *about)
        assert explained["latent"] == critical["latent"] == latent
        assert critical["rows"] == rows
        assert [(each["label"], each["name"]) for each in critical["classes"]] == [(3, "3")]
    junk = photos / JUNK[0]
    told = done(
        capsys, "explain", artifact, image, junk, "--skip-unreadable", "--out", tmp_path / "o"
    )
    assert (told["left_out"], len(told["images"])) == ([str(junk)], 1)
    assert "none of the 1 images can be read" in refused(
        capsys, "explain", artifact, junk, "--skip-unreadable", "--out", tmp_path / "o"
    )
    assert "for another latent, class or rows give the study" in refused(
        capsys, "explain", artifact, image, "--latent", 1, "--out", tmp_path / "overlays"
    )
    named = done(capsys, "alpha-crit", study, "--class", "3", "--latent", 1)
    again = done(capsys, "edit", study, "--class", "3", "--latent", 1, "--strength", 1,
                 "--pictures", 0, "--out", tmp_path / "edit")  # fmt: skip
    assert named["latent"] == again["latent"] == 1
    assert set(named["rows"]) >= {3}


def test_the_study_s_checkpoint_serves_apply_evaluate_and_revert(
    artifact: Path, photos: Path, lightning: Path, tmp_path: Path, capsys: Capture
) -> None:
    edited, restored = tmp_path / "edited.safetensors", tmp_path / "restored.safetensors"
    told = done(capsys, "apply", artifact, "--out", edited, "--data", photos, "--skip-unreadable")
    assert (told["touched"], told["rest"], told["left_out"]) == (True, True, sorted(JUNK))
    assert done(capsys, "evaluate", artifact, "--data", photos, "--skip-unreadable")["same"]
    done(capsys, "revert", artifact, "--checkpoint", edited, "--out", restored)
    state = torch.load(lightning, weights_only=False)["state_dict"]
    back = load_file(restored)
    assert all(
        torch.equal(tensor, back[name.removeprefix("model.")]) for name, tensor in state.items()
    )
    assert done(capsys, "audit", artifact, "--edited", edited)["proven"]
    assert done(capsys, "audit", artifact, "--base", lightning, "--edited", edited)["proven"]
    elsewhere = shutil.copytree(artifact, tmp_path / "elsewhere")
    (elsewhere / "local_study.json").unlink()  # as it is after a pull
    message = refused(capsys, "apply", elsewhere, "--out", tmp_path / "x.safetensors")
    assert "give it with --checkpoint" in message
    same = ("--checkpoint", lightning, "--out", edited)
    assert done(capsys, "apply", elsewhere, *same)["rest"]


def test_some_of_the_classes_will_do_to_evaluate_on(
    artifact: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    # Named as the study's folders were, which the model itself does not know.
    some = tmp_path / "some"
    for name in ("3", "5"):
        (some / name).mkdir(parents=True)
        for path in sorted((photos / name).glob("00*.jpg")):
            shutil.copy(path, some / name)
    edited = tmp_path / "edited.safetensors"
    told = done(capsys, "apply", artifact, "--out", edited, "--data", some)
    assert [each["label"] for each in told["assessment"]["classes"] if each["count"]] == [3, 5]
    status, told = run(capsys, "evaluate", artifact, "--data", some)
    assert (status, told["same"]) == (2, False)


def test_a_checkpoint_that_changed_is_noticed(
    discover: list[object], lightning: Path, artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    mine, study, edit = tmp_path / "mine.ckpt", tmp_path / "study", tmp_path / "edit"
    shutil.copy(lightning, mine)
    command = [*discover[:4], mine, *discover[5:], "--skip-unreadable", "--out", study]
    done(capsys, *command)
    make = ("--latent", 1, "--strength", 1, "--pictures", 0, "--out", edit)
    done(capsys, "edit", study, *make)
    saved = torch.load(mine, weights_only=False)
    saved["state_dict"]["model.fc.bias"][0] += 1
    torch.save(saved, mine)
    done(capsys, "features", study)
    with pytest.raises(SystemExit):
        main(["features", str(study)])
    assert "mine.ckpt is not the file that was recorded" in capsys.readouterr().err
    assert "a study with other model" in refused(capsys, *command)
    mine.unlink()
    assert "mine.ckpt" in refused(capsys, "apply", edit, "--out", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--learner", "l3", "no learner"),
        ("--learner", "gradient_topk", "gradient"),
        ("--latents", 5000, "too few for 5000 latents"),
        ("--l0", 3, "no sparsity that could be steered"),
        ("--seed", 2**60, "seed must be"),
        ("--site", "blocks.77.hook_out", "blocks.77.hook_out"),
    ],
)
def test_wrong_options_are_refused_before_the_first_image(
    discover: list[object],
    option: str,
    value: object,
    message: str,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    command = [*discover[:7], "--skip-unreadable", "--out", tmp_path / "study", option, value]
    assert message in refused(capsys, *command)
    assert not (tmp_path / "study").exists()


def test_what_lies_at_out_is_found_before_anything_is_measured(
    study: Path, artifact: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(1)}, file)
    # Images that cannot be read would be the first thing that the measurement meets.
    (tmp_path / "bad" / "3").mkdir(parents=True)
    (tmp_path / "bad" / "3" / "a.jpg").write_bytes(b"x")
    message = refused(capsys, "apply", artifact, "--out", file, "--data", tmp_path / "bad")
    assert "holds another file" in message
    for command in (("edit", study, "--class", "3"), ("explain", study, photos / "3" / "000.jpg")):
        assert "is a file, and a folder is to be written" in refused(
            capsys, *command, "--out", file
        )
    nowhere = tmp_path / "nowhere" / "w.safetensors"
    assert "there is no folder" in refused(capsys, "apply", artifact, "--out", nowhere)
    assert "choose one of the endings" in refused(
        capsys, "quality", study, "--figure", tmp_path / "a.xyz"
    )
    (tmp_path / "a.png").write_text("somebody's")
    assert "choose another --figure, or add --force" in refused(
        capsys, "quality", study, "--figure", tmp_path / "a.png"
    )


def test_a_choice_that_misses_its_goal_is_said_in_red_and_in_words(
    study: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing in the row of another class keeps images from this one.
    command = ["edit", study, "--class", "0", "--rows", 1, "--pictures", 0, "--out", tmp_path / "e"]
    told = done(capsys, *command)
    assert told["choice"]["met"] is False
    assert told["choice"]["verdict"].startswith("NOT MET")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for red in (True, False):
        with pytest.raises(SystemExit):
            main([str(each) for each in command])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "NOT MET" in line]
        assert ("31m" in line) is red
        monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.slow  # its controls are trained, whatever the size of the study
def test_quality_is_measured_and_drawn(study: Path, tmp_path: Path, capsys: Capture) -> None:
    measured = done(capsys, "quality", study, "--figure", tmp_path / "q.png")
    assert measured["rows"].keys() >= {"dictionary", "random"}
    assert measured["rows"]["dictionary"]["ce_recovered"] is not None
    assert (tmp_path / "q.png").stat().st_size > 1000
    assert "another file" in refused(capsys, "quality", study, "--figure", tmp_path / "q.png")


def test_edits_are_compared_and_bundled(
    study: Path, artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "no-fives"
    done(capsys, "edit", study, "--class", "5", "--pictures", 0, "--out", other)
    status, told = run(capsys, "diff", artifact, other)
    assert (status, told["same"], told["same_base"], told["same_edit"]) == (1, False, True, False)
    assert done(capsys, "diff", other, other)["same"]
    assert run(capsys, "diff", other, study)[0] == 2
    made = done(capsys, "bundle", artifact, f"fives={other}", "--out", tmp_path / "bundle")
    assert set(made["members"]) == {"no-threes", "fives"}
    edited = tmp_path / "edited.safetensors"
    assert done(capsys, "apply", tmp_path / "bundle", "--out", edited)["touched"]
    assert done(capsys, "audit", tmp_path / "bundle", "--edited", edited)["proven"]
    assert "two members are called" in refused(
        capsys, "bundle", other, other, "--out", tmp_path / "two"
    )
    for command in (
        ("quality", study),
        ("diff", artifact, other),
        ("inspect", tmp_path / "bundle"),
    ):
        with pytest.raises(SystemExit):
            main([str(each) for each in command])
        assert capsys.readouterr().out.strip()


def test_a_pushed_artifact_says_nothing_of_this_machine(
    artifact: Path,
    study: Path,
    default_hub: LoopbackHub,
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    done(capsys, "push", artifact, repo_id)
    done(capsys, "pull", repo_id, "--out", tmp_path / "back")
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert names == {path.name for path in artifact.iterdir()} - {"local_study.json"}
    for path in (tmp_path / "back").iterdir():
        assert str(study).encode() not in path.read_bytes()
    for command in ("verify", "inspect"):
        done(capsys, command, artifact)
