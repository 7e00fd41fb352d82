"""`salve audit`: the verdict, the table and the status, on files of networks trained on digits."""

import json
import re
from pathlib import Path

import pytest
import torch
from audited_models import (
    FIXTURES,
    WRONG,
    State,
    head_edit,
    hidden_edit,
    network,
    state,
    written,
)
from command import run
from torch import nn

from salve_plugin import EditArtifact, EditBundle
from salve_plugin.cli import main
from salve_plugin.share.model_state import without_prefix

Capture = pytest.CaptureFixture[str]
BASE = FIXTURES / "digits_resnet.safetensors"


@pytest.fixture
def model() -> nn.Module:
    return network("resnet")


@pytest.fixture
def artifact(model: nn.Module) -> EditArtifact:
    return EditArtifact.of(model, head_edit(model, [1, 3]))


@pytest.fixture
def folder(artifact: EditArtifact, tmp_path: Path) -> Path:
    return artifact.save_pretrained(tmp_path / "edit")


@pytest.fixture
def edited(artifact: EditArtifact, model: nn.Module) -> State:
    return state(artifact.edit.edited(model))


def shown(capsys: Capture, *arguments: object) -> tuple[int, str]:
    """Run `salve audit` for people; return its status and what it printed, in one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(["audit", *(str(each) for each in arguments)])
    printed = capsys.readouterr()
    return int(exit_info.value.code or 0), " ".join((printed.out + printed.err).split())


@pytest.mark.parametrize("with_base", [True, False])
def test_the_right_model_is_proven(
    folder: Path, artifact: EditArtifact, edited: State, with_base: bool, tmp_path: Path,
    capsys: Capture,
) -> None:  # fmt: skip
    file = written(edited, tmp_path / "edited.safetensors")
    base = ("--base", BASE) if with_base else ()
    status, result = run(capsys, "audit", folder, *base, "--edited", file)
    assert (status, result["proven"]) == (0, True)
    assert result["artifacts"] == {str(folder): artifact.digest}
    assert result["edits"] == [artifact.edit.digest]
    assert result["base_digest"] == artifact.edit.base.state
    rows = {row["name"]: row["verdict"] for row in result["tensors"]}
    assert set(rows) == set(edited)
    assert [name for name, said in rows.items() if said != "identical"] == ["fc.weight"]
    assert {**artifact.audit(BASE if with_base else None, file).to_json()} == {
        name: value for name, value in result.items() if name != "artifacts"
    }
    status, text = shown(capsys, folder, *base, "--edited", file)
    (row,) = [row for row in result["tensors"] if row["name"] == "fc.weight"]
    assert status == 0
    assert text.startswith("Proven: the model is the base with exactly edit")
    for part in (row["before"][:12], row["after"][:12], result["base_digest"],
                 result["edited_digest"], f"{len(edited) - 1} tensors are identical"):  # fmt: skip
        assert part in text
    assert "bn1.bias" not in text
    assert "bn1.bias" in shown(capsys, folder, *base, "--edited", file, "--all")[1]


@pytest.mark.parametrize("kind", WRONG)
def test_what_else_was_changed_is_named_and_ends_with_status_1(
    kind: str, folder: Path, edited: State, tmp_path: Path, capsys: Capture
) -> None:
    change, message = WRONG[kind]
    change(edited)
    file = written(edited, tmp_path / "edited.safetensors")
    status, result = run(capsys, "audit", folder, "--base", BASE, "--edited", file)
    assert (status, result["proven"]) == (1, False)
    assert re.search(message, result["sentence"]), result["sentence"]
    assert run(capsys, "audit", folder, "--edited", file)[0] == 1
    status, text = shown(capsys, folder, "--base", BASE, "--edited", file)
    assert status == 1
    assert text.startswith("NOT proven")


def test_half_copies_are_told_and_a_change_in_one_is_found(
    folder: Path, edited: State, tmp_path: Path, capsys: Capture
) -> None:
    half = {n: each.half() if each.is_floating_point() else each for n, each in edited.items()}
    file = written(half, tmp_path / "half.safetensors")
    status, result = run(capsys, "audit", folder, "--base", BASE, "--edited", file)
    assert (status, result["dtype"]) == (0, "float16")
    assert "a float16 copy of the base" in result["sentence"]
    half["conv1.weight"][0, 0, 0, 0] += 1
    written(half, file)
    assert run(capsys, "audit", folder, "--base", BASE, "--edited", file)[0] == 1


def test_another_edits_artifact_proves_nothing(
    model: nn.Module, edited: State, tmp_path: Path, capsys: Capture
) -> None:
    file = written(edited, tmp_path / "edited.safetensors")
    wrong = EditArtifact.of(model, head_edit(model, [1, 3], 1.5)).save_pretrained(
        tmp_path / "wrong"
    )
    vit = network("vit")
    other = EditArtifact.of(vit, hidden_edit(vit)).save_pretrained(tmp_path / "other")
    for base in (("--base", BASE), ()):
        for artifact in (wrong, other):
            assert run(capsys, "audit", artifact, *base, "--edited", file)[0] == 1
    sentence = run(capsys, "audit", other, "--base", BASE, "--edited", file)[1]["sentence"]
    assert "made for another base" in sentence


def test_several_artifacts_are_all_in_the_model(
    model: nn.Module, artifact: EditArtifact, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    more = EditArtifact.of(model, head_edit(model, [3, 5], 1.0))
    bundle = EditBundle.of(model, {"one": artifact, "two": more})
    second = more.save_pretrained(tmp_path / "more")
    both = bundle.save_pretrained(tmp_path / "both")
    bundle.apply_(model)
    file = written(model, tmp_path / "edited.safetensors")
    for base in (("--base", BASE), ()):
        for sources in ((folder, second), (second, folder), (both,), (both, folder)):
            status, result = run(capsys, "audit", *sources, *base, "--edited", file)
            assert (status, len(result["edits"])) == (0, 2)
        assert run(capsys, "audit", folder, *base, "--edited", file)[0] == 1
    assert set(result["artifacts"]) == {f"{both}/one", f"{both}/two", str(folder)}


def test_hidden_edits_with_biases_are_proven(tmp_path: Path, capsys: Capture) -> None:
    vit = network("vit")
    artifact = EditArtifact.of(vit, hidden_edit(vit))
    folder = artifact.save_pretrained(tmp_path / "edit")
    file = written(artifact.edit.edited(vit), tmp_path / "edited.safetensors")
    base = FIXTURES / "digits_vit.safetensors"
    status, result = run(capsys, "audit", folder, "--base", base, "--edited", file)
    changed = {row["name"] for row in result["tensors"] if row["verdict"] != "identical"}
    assert (status, changed) == (0, set(artifact.edit.base.tensors))
    assert any(name.endswith(".bias") for name in changed)


def test_checkpoints_of_every_kind_are_read(
    folder: Path, edited: State, tmp_path: Path, capsys: Capture
) -> None:
    torch.save(edited, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{n}": t for n, t in edited.items()}}, tmp_path / "ddp.pt")
    (tmp_path / "folder").mkdir()
    written(edited, tmp_path / "folder" / "model.safetensors")
    for name in ("plain.pth", "ddp.pt", "folder"):
        for base in (("--base", BASE), ()):
            assert run(capsys, "audit", folder, *base, "--edited", tmp_path / name)[0] == 0
    longer = {f"model.{name}": tensor for name, tensor in edited.items()}
    written(longer | {"criterion.weight": torch.ones(1)}, tmp_path / "more.safetensors")
    status, result = run(
        capsys, "audit", folder, "--base", BASE, "--edited", tmp_path / "more.safetensors"
    )
    assert status == 1
    assert re.search(r"missing.* and \d+ more", result["sentence"])
    assert without_prefix(longer, {"fc.weight", "nothing"}) == longer


def test_what_cannot_be_compared_ends_with_status_2(
    model: nn.Module, folder: Path, edited: State, tmp_path: Path, capsys: Capture
) -> None:
    file = written(edited, tmp_path / "edited.safetensors")
    status, failed = run(capsys, "audit", folder, "--edited", tmp_path / "absent.safetensors")
    assert (status, failed["error"]) == (2, "ReadError")
    (tmp_path / "empty").mkdir()
    assert run(capsys, "audit", folder, "--edited", tmp_path / "empty")[0] == 2
    status, failed = run(capsys, "audit", tmp_path / "empty", "--edited", file)
    assert (status, failed["error"]) == (2, "MissingFileError")
    recipe = EditArtifact(head_edit(model)).save_pretrained(tmp_path / "recipe")
    status, failed = run(capsys, "audit", recipe, "--edited", file)
    assert (status, failed["error"]) == (2, "InputError")
    assert "--base" in failed["message"]
    status, text = shown(capsys, recipe, "--edited", file)
    assert (status, text.startswith("InputError:")) == (2, True)
    for usage in ((folder,), ("--edited", file)):
        with pytest.raises(SystemExit) as exit_info:
            main(["audit", *map(str, usage)])
        assert exit_info.value.code == 2


def test_names_of_tensors_cannot_command_a_terminal(
    folder: Path, edited: State, tmp_path: Path, capsys: Capture
) -> None:
    edited["evil\x1b[31m[bold]"] = torch.ones(1)
    file = written(edited, tmp_path / "edited.safetensors")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["audit", str(folder), "--base", str(BASE), "--edited", str(file)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[bold]" in printed
    with pytest.raises(SystemExit):
        main(["audit", str(folder), "--base", str(BASE), "--edited", str(file), "--json"])
    assert "evil" in json.loads(capsys.readouterr().out)["sentence"]
