"""`salve apply` and `revert` of bundles: all edits of one, or none."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from command import run
from safetensors.torch import load_file, save_file
from small_artifacts import random_dictionary
from torch import nn

import salve_plugin as salve
from salve_plugin.cli import main
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(checkpoint: Path) -> nn.Module:
    """The base of the bundle, as timm makes it."""
    network: nn.Module = timm.create_model("test_resnet", num_classes=10).eval()
    network.load_state_dict(load_file(checkpoint))
    return network


@pytest.fixture
def bundle(model: nn.Module) -> EditBundle:
    """Two edits of the head that share row 3."""
    hooked = salve.attach(model)
    dictionary = random_dictionary(hooked)
    rows = {"one": (1, 3), "two": (3, 5)}
    edits = {
        name: salve.suppress(hooked, dictionary, latent=latent, strength=1.5, rows=rows[name])
        for latent, name in enumerate(rows)
    }
    members = {name: EditArtifact.of(hooked, edit) for name, edit in edits.items()}
    return EditBundle.of(hooked, members)


@pytest.fixture
def folder(bundle: EditBundle, tmp_path: Path) -> Path:
    return bundle.save_pretrained(tmp_path / "bundle")


def same(one: Path, other: Path) -> bool:
    """Tell whether two state dicts are equal to the last bit."""
    a, b = load_file(one), load_file(other)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_bundle_is_applied_and_reverted_bit_for_bit(
    bundle: EditBundle, folder: Path, model: nn.Module, checkpoint: Path, image_folder: Path,
    tmp_path: Path, capsys: Capture,
) -> None:  # fmt: skip
    edited, restored = tmp_path / "edited.safetensors", tmp_path / "restored.safetensors"
    status, applied = run(
        capsys, "apply", folder, "--checkpoint", checkpoint, "--out", edited, "--data", image_folder
    )
    assert (status, applied["kind"], applied["artifact"]) == (0, "bundle", bundle.digest)
    assert applied["edited"] == ["fc.weight"]
    assert (applied["touched"], applied["rest"]) == (True, True)
    assert applied["accuracy_before"] > 0.9
    bundle.apply_(model)
    assert torch.equal(load_file(edited)["fc.weight"], model.get_parameter("fc.weight"))
    status, reverted = run(capsys, "revert", folder, "--checkpoint", edited, "--out", restored)
    assert (status, reverted["kind"], reverted["restored"]) == (0, "bundle", ["fc.weight"])
    assert same(restored, checkpoint)


def test_one_member_alone_is_an_edit(folder: Path, checkpoint: Path, tmp_path: Path,
    capsys: Capture) -> None:  # fmt: skip
    edited, restored = tmp_path / "edited.safetensors", tmp_path / "restored.safetensors"
    where = ("--subfolder", "one")
    status, applied = run(
        capsys, "apply", folder, *where, "--checkpoint", checkpoint, "--out", edited
    )
    assert (status, applied["kind"]) == (0, "edit")
    status, failed = run(capsys, "revert", folder, "--checkpoint", edited, "--out", restored)
    assert (status, failed["error"]) == (1, "EditStateError")  # only one of two is in it
    status, failed = run(
        capsys, "apply", folder, "--checkpoint", edited, "--out", tmp_path / "both.safetensors"
    )
    assert (status, failed["error"]) == (1, "BaseMismatchError")
    assert not restored.exists()
    assert not (tmp_path / "both.safetensors").exists()
    assert run(capsys, "revert", folder, *where, "--checkpoint", edited, "--out", restored)[0] == 0
    assert same(restored, checkpoint)


def test_a_bundle_without_all_pristine_rows_cannot_be_reverted_from_a_file(
    bundle: EditBundle, model: nn.Module, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    one = replace(bundle.members["one"], pristine=None)
    bare = EditBundle.of(model, {**bundle.members, "one": one})
    folder = bare.save_pretrained(tmp_path / "bare")
    edited, restored = tmp_path / "edited.safetensors", tmp_path / "restored.safetensors"
    assert run(capsys, "apply", folder, "--checkpoint", checkpoint, "--out", edited)[0] == 0
    status, failed = run(capsys, "revert", folder, "--checkpoint", edited, "--out", restored)
    assert (status, failed["error"]) == (1, "EditStateError")
    assert "pristine rows" in failed["message"]
    assert not restored.exists()


def test_another_base_is_refused_and_nothing_is_written(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    state, out = load_file(checkpoint), tmp_path / "out.safetensors"
    state["fc.weight"][0, 0] += 1  # a row that no member touches
    save_file(state, tmp_path / "other.safetensors")
    for command in ("apply", "revert"):
        status, failed = run(
            capsys, command, folder, "--checkpoint", tmp_path / "other.safetensors", "--out", out
        )
        assert status == 1
        assert failed["error"] in ("BaseMismatchError", "EditStateError")
    assert not out.exists()


def test_a_dictionary_edits_nothing(
    model: nn.Module, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = random_dictionary(salve.attach(model)).save_pretrained(tmp_path / "dictionary")
    for command in ("apply", "revert"):
        status, failed = run(
            capsys, command, folder, "--checkpoint", checkpoint, "--out", tmp_path / "o.safetensors"
        )
        assert (status, failed["error"]) == (1, "InputError")
        assert "holds a dictionary" in failed["message"]


def test_members_that_change_the_same_rows_are_shown_as_they_are_in_json(
    bundle: EditBundle, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    places = [each.save_pretrained(tmp_path / name) for name, each in bundle.members.items()]
    command = ["bundle", *places, "--out", tmp_path / "both", "--checkpoint", checkpoint]
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, command)))
    assert stopped.value.code == 0
    table = capsys.readouterr().out.partition("members that change the same rows")[2]
    (overlap,) = run(capsys, *command)[1]["overlaps"]
    row = next(line for line in table.splitlines() if "fc.weight" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        str(overlap[name]) for name in ("first", "second", "tensor", "rows", "meeting")
    ]
