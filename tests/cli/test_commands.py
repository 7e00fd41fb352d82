"""The way through the commands, on a real timm model and a real image folder."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salve_plugin import suppress
from salve_plugin.cli import main
from salve_plugin.cli.pictures import _ordered
from salve_plugin.cli.study import Study
from salve_plugin.control.edit import Edit
from salve_plugin.control.rivals import with_rivals
from salve_plugin.errors import InputError
from salve_plugin.validate.sheets import SIDE

Capture = pytest.CaptureFixture[str]


def _run(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """Run a command with --json and return what it printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([*(str(each) for each in arguments), "--json"])
    printed = capsys.readouterr().out
    assert exit_info.value.code in (0, None), printed
    result: dict[str, Any] = json.loads(printed)
    return result


def _fails(capsys: Capture, *arguments: object) -> str:
    """Run a command that must end with status 1 and return its message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([str(each) for each in arguments])
    assert exit_info.value.code == 1
    return " ".join(capsys.readouterr().err.split())


def test_a_study_says_what_was_found(study: Path, capsys: Capture) -> None:
    found = _run(capsys, "features", study, "--top", 2)
    assert [entry["name"] for entry in found["classes"]] == [str(digit) for digit in range(10)]
    assert all(entry["images"] == 12 for entry in found["classes"])
    assert all(0 <= entry["dominant"]["latent"] < 16 for entry in found["classes"])
    (three,) = _run(capsys, "features", study, "--class", "3")["classes"]
    assert three["class"] == 3
    assert three["ranked"] == sorted(three["ranked"], key=lambda each: -each["score"])


@pytest.mark.filterwarnings("ignore:.*of the latents are dead")
def test_another_learner_can_be_steered_to_a_number_of_active_latents(
    study: Path, image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    names = [info["name"] for info in _run(capsys, "learners")["learners"]]
    assert {"l1", "topk", "jumprelu"} <= set(names)
    found = _run(
        capsys, "discover", "--model", "test_resnet", "--checkpoint", checkpoint, "--num-classes",
        10, "--data", image_folder, "--out", tmp_path, "--latents", 16, "--learner", "topk",
        "--l0", 3,
    )  # fmt: skip
    assert found["learner"] == "topk"
    assert 0 < found["l0"] <= 3
    refused = _fails(
        capsys, "discover", "--model", "test_resnet", "--checkpoint", checkpoint, "--num-classes",
        10, "--data", image_folder, "--out", tmp_path, "--learner", "l1", "--l0", 3, "--force",
    )  # fmt: skip
    assert "learner 'l1' has no sparsity that could be steered to target_l0 = 3" in refused


def test_discovering_again_reuses_the_recording(
    study: Path, image_folder: Path, checkpoint: Path, capsys: Capture
) -> None:
    shards = {path: path.stat().st_mtime_ns for path in (study / "activations").iterdir()}
    again = _run(
        capsys, "discover", "--model", "test_resnet", "--checkpoint", checkpoint, "--num-classes",
        10, "--data", image_folder, "--out", study, "--latents", 16,
    )  # fmt: skip
    assert again["rows"] == 120
    assert shards == {path: path.stat().st_mtime_ns for path in (study / "activations").iterdir()}


def test_each_image_stands_beside_its_map_and_the_latent_has_a_picture_of_its_own(
    study: Path, image_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    from PIL import Image

    images = sorted((image_folder / "3").iterdir())[:2]
    result = _run(capsys, "explain", study, *images, "--class", "3", "--out", tmp_path)
    assert len(result["images"]) == 2
    for entry in result["images"]:
        with Image.open(entry["overlay"]) as picture:
            assert min(picture.size) > SIDE
        assert entry["most"] > entry["least"]
    with Image.open(result["picture"]) as picture:
        assert picture.width > 4 * SIDE  # what was made, and three images
    assert result["note"] is None


def test_a_latent_that_was_not_named_is_explained_with_the_reason(
    study: Path, image_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (features,) = _run(capsys, "features", study, "--class", "3")["classes"]
    dominant = features["dominant"]["latent"]
    image = next((image_folder / "3").iterdir())
    with pytest.raises(SystemExit, match="0"):
        main(["explain", str(study), str(image), "--class", "3", "--out", str(tmp_path / "out")])
    shown = " ".join(capsys.readouterr().out.split())
    found = re.search(r"Grad-FAM of latent (\d+), which `salve edit` takes for 3", shown)
    assert found is not None
    assert (f"(its dominant latent is {dominant})" in shown) == (int(found[1]) != dominant)


def test_images_that_are_gone_are_no_reason_not_to_explain(
    study: Path, image_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    moved = tmp_path / "study"
    shutil.copytree(study, moved)
    text = json.loads((moved / "study.json").read_text())
    (moved / "study.json").write_text(json.dumps({**text, "data": str(tmp_path / "gone")}))
    image = next((image_folder / "3").iterdir())
    result = _run(capsys, "explain", moved, image, "--latent", 2, "--out", tmp_path / "out")
    assert len(result["images"]) == 1
    assert result["picture"] is None
    assert "no picture of what drives latent 2 most" in result["note"]


def test_critical_strengths_come_by_class(study: Path, capsys: Capture) -> None:
    result = _run(capsys, "alpha-crit", study, "--class", "3", "--target", "zero")
    (entry,) = result["classes"]
    assert entry["label"] == 3
    assert entry["count"] == 12
    every = _run(capsys, "alpha-crit", study, "--latent", result["latent"])
    assert [each["label"] for each in every["classes"]] == list(range(10))


def test_an_edit_is_made_applied_and_reverted_bit_for_bit(
    study: Path, image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    artifact, edited, restored = (
        tmp_path / name for name in ("no-threes", "edited.safetensors", "restored.safetensors")
    )
    made = _run(capsys, "edit", study, "--class", "3", "--out", artifact)
    assert 3 in made["rows"]
    before, after = made["evaluation"]["before"], made["evaluation"]["after"]
    assert before["target accuracy"] > 0.8
    assert after["target accuracy"] <= 0.1
    inspected = _run(capsys, "inspect", artifact)
    assert made["sha256"] in json.dumps(inspected)
    model = ("--model", "test_resnet", "--num-classes", 10)
    applied = _run(
        capsys, "apply", artifact, *model, "--checkpoint", checkpoint, "--out", edited,
        "--data", image_folder,
    )  # fmt: skip
    assert applied["accuracy_before"] == pytest.approx(before["accuracy"])
    assert applied["accuracy_after"] == pytest.approx(after["accuracy"])
    assert (applied["touched"], applied["rest"]) == (True, True)
    back_again = _run(capsys, "revert", artifact, *model, "--checkpoint", edited, "--out", restored)
    assert (back_again["touched"], back_again["rest"]) == (True, True)
    base, changed, back = load_file(checkpoint), load_file(edited), load_file(restored)
    assert not torch.equal(base["fc.weight"], changed["fc.weight"])
    assert all(torch.equal(base[name], changed[name]) for name in base if name != "fc.weight")
    assert all(torch.equal(base[name], back[name]) for name in base)


def test_apply_and_revert_say_what_was_compared(
    study: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    _run(capsys, "edit", study, "--latent", 2, "--strength", 3, "--out", tmp_path / "edit")
    other = load_file(checkpoint)
    other["conv1.0.weight" if "conv1.0.weight" in other else "conv1.weight"][0] += 1
    save_file(other, tmp_path / "other.safetensors")
    sentence = "the parameters that the edit touches are those it was made for, "
    for base, rest, words in (
        (checkpoint, True, "and everything else is that of its base"),
        (tmp_path / "other.safetensors", False, "but something else in the model is not that of"),
    ):
        edited = tmp_path / f"edited-{rest}.safetensors"
        for command, source in (("apply", base), ("revert", edited)):
            out = edited if command == "apply" else tmp_path / f"restored-{rest}.safetensors"
            options = (command, tmp_path / "edit", "--checkpoint", source, "--out", out)
            said = _run(capsys, *options)
            assert (said["touched"], said["rest"]) == (True, rest)
            with pytest.raises(SystemExit):
                main([str(each) for each in options])
            assert sentence + words in " ".join(capsys.readouterr().out.split())


def test_the_artifact_knows_its_own_base(
    study: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    made = _run(capsys, "edit", study, "--latent", 2, "--strength", 3, "--out", tmp_path / "edit")
    assert made["rows"] is None
    result = _run(
        capsys, "apply", tmp_path / "edit", "--checkpoint", checkpoint,
        "--out", tmp_path / "edited.safetensors",
    )  # fmt: skip
    assert result["edited"] == ["fc.weight"]


def test_an_edit_shows_the_images_of_its_class(
    study: Path, image_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    from huggingface_hub import ModelCard
    from PIL import Image

    made = _run(capsys, "edit", study, "--class", "3", "--pictures", 2, "--out", tmp_path / "edit")
    assert made["pictures"] == ["alpha-crit", "grad-fam-1", "grad-fam-2"]
    with Image.open(tmp_path / "edit" / "picture_grad-fam-1.png") as picture:
        assert picture.width > 2 * SIDE
    results = ModelCard.load(tmp_path / "edit" / "README.md").data.eval_results
    assert results is not None
    assert {result.dataset_name for result in results} == {f"image folder '{image_folder.name}'"}
    made = _run(capsys, "edit", study, "--class", "3", "--pictures", 0, "--out", tmp_path / "none")
    assert made["pictures"] == ["alpha-crit"]


def test_an_edit_is_made_without_its_images_too(
    study: Path, tmp_path: Path, capsys: Capture
) -> None:
    moved = shutil.copytree(study, tmp_path / "study")
    fields = json.loads((moved / "study.json").read_text())
    (moved / "study.json").write_text(json.dumps({**fields, "data": str(tmp_path / "gone")}))
    made = _run(capsys, "edit", moved, "--class", "3", "--out", tmp_path / "edit")
    assert made["pictures"] == ["alpha-crit"]
    with pytest.raises(SystemExit):
        main(["edit", str(moved), "--class", "3", "--out", str(tmp_path / "edit")])
    assert "no Grad-FAM pictures" in capsys.readouterr().err


def test_the_images_that_show_the_latent_most_are_taken(study: Path) -> None:
    loaded = Study.load(study)
    acts, dictionary, _ = loaded.parts()
    labels = acts.labels().long()
    latents = dictionary.pre_activation(acts.tensor())[:, 2]
    threes = latents[labels == 3]
    extreme = threes.max() if threes.mean() >= 0 else threes.min()
    order, sign = _ordered(acts, dictionary, 2, labels, 3)
    assert sign == (1 if threes.mean() >= 0 else -1)
    assert latents[order[0]] == pytest.approx(float(extreme), rel=1e-5)
    assert sorted(order) == (labels == 3).nonzero()[:, 0].tolist()
    assert len(_ordered(acts, dictionary, 2, labels, None)[0]) == len(labels)
    with pytest.raises(InputError, match="not the ones that were recorded"):
        _ordered(acts, dictionary, 2, labels.flip(0), None)


def test_enhancing_needs_a_strength(study: Path, tmp_path: Path, capsys: Capture) -> None:
    message = _fails(capsys, "edit", study, "--class", "3", "--enhance", "--out", tmp_path / "e")
    assert "InputError: give a --strength" in message
    made = _run(
        capsys, "edit", study, "--class", "3", "--enhance", "--strength", 2, "--rows", "class",
        "--out", tmp_path / "e",
    )  # fmt: skip
    assert (made["mode"], made["rows"]) == ("enhance", [3])


def test_a_named_latent_gets_the_rivals_rows_that_it_needs(
    study: Path, tmp_path: Path, capsys: Capture
) -> None:
    loaded = Study.load(study)
    acts, dictionary, _ = loaded.parts()
    opened = loaded.spec.open()
    head = opened.hooked.unembed(opened.hooked.site("unembed.hook_in"))
    recorded = (acts.tensor(), acts.labels())
    base = suppress(opened.hooked, dictionary, latent=0, strength=0.0).base

    def needed(label: int, latent: int, strengths: list[float] | None) -> Edit:
        edit = suppress(opened.hooked, dictionary, latent=latent, strength=0.0, base=base)
        return with_rivals(edit, *head, recorded, label, strengths)

    # Some latents of this study do with the class's own row: the first that does not.
    label, edit = next(
        (label, edit)
        for label in range(10)
        for latent in range(dictionary.n_latents)
        for strengths in (None, [5.0], [20.0], [80.0])
        if len((edit := needed(label, latent, strengths)).rows or ()) > 1
    )
    named = ("edit", study, "--class", label, "--latent", edit.latent, "--out", tmp_path / "edit")
    forced = (*named, "--force")
    for rows in (("--rows", "rivals"), ()):  # which is the default where a class is named
        made = _run(capsys, *forced, *rows, "--strength", edit.gate.strength)
        assert (made["rows"], made["strength"]) == (sorted(edit.rows or ()), edit.gate.strength)
    weak = _run(capsys, *forced, "--rows", "rivals", "--strength", 0.5)
    assert weak["rows"] == sorted(needed(label, edit.latent, [0.5]).rows or ())
    assert "is for suppressing" in _fails(
        capsys, *forced, "--rows", "rivals", "--enhance", "--strength", 1
    )
    made = _run(capsys, *forced, "--enhance", "--strength", 1)
    assert (made["mode"], made["rows"]) == ("enhance", [label])


def test_mistakes_end_with_their_message_and_status_1(
    study: Path, image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert "no class" in _fails(capsys, "features", study, "--class", "church")
    assert "is not a study" in _fails(capsys, "features", tmp_path)
    assert "latent 99 does not exist" in _fails(capsys, "alpha-crit", study, "--latent", 99)
    for rows in ("some", ""):
        assert f"--rows {rows!r} is unknown" in _fails(
            capsys, "edit", study, "--class", "3", "--rows", rows, "--out", tmp_path / "a"
        )
    discover = ("discover", "--data", image_folder, "--out", tmp_path / "s", "--num-classes", 10)
    assert "did you mean" in _fails(capsys, *discover, "--model", "test_resnot")
    assert "unembed.hook_in" in _fails(
        capsys, *discover, "--model", "test_resnet", "--checkpoint", checkpoint, "--site", "fc"
    )
    assert not (tmp_path / "s").exists()
    assert "MissingFileError" in _fails(capsys, "inspect", tmp_path)


def test_an_artifact_for_another_model_is_refused(
    study: Path, tmp_path: Path, capsys: Capture
) -> None:
    import timm
    from safetensors.torch import save_file

    _run(capsys, "edit", study, "--latent", 2, "--strength", 3, "--rows", "all",
         "--out", tmp_path / "edit")  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        save_file(
            timm.create_model("test_resnet", num_classes=10).state_dict(),
            tmp_path / "other.safetensors",
        )
    out = tmp_path / "edited.safetensors"
    message = _fails(
        capsys, "apply", tmp_path / "edit", "--checkpoint", tmp_path / "other.safetensors",
        "--out", out,
    )  # fmt: skip
    assert "BaseMismatchError" in message
    assert not out.exists()


def test_errors_are_json_where_json_was_asked_for(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["features", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["error"] == "ReadError"


def test_tables_are_printed_without_json(study: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["features", str(study), "--class", "3"])
    printed = capsys.readouterr().out
    assert "dominant latent" in printed
