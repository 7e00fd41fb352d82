"""The edited model beside its artifact: timm loads it, the artifact takes the edit back out."""

import subprocess
import sys
import tracemalloc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_models import MODEL, artifact_of, created, loaded, logits, trained
from hub_client import LoopbackHub
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from small_artifacts import contents, state_bytes, with_edit
from torch import nn

import salve_plugin as salve
from salve_plugin import adapter
from salve_plugin.share.artifact import EditArtifact

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["digits_resnet", "digits_vit", "test_resnet", "test_vit"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "digits_resnet":
        return trained("salve_digits_resnet", request.getfixturevalue("digits_resnet"))
    if request.param == "digits_vit":
        size = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2}
        return trained("vit_tiny_patch16_224", request.getfixturevalue("digits_vit"), **size)
    return created(request.param, num_classes=10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [None, (1, 3)], ids=["all", "rows"])
def test_timm_loads_the_edited_model_and_the_artifact_reverts_it_bit_for_bit(
    model: nn.Module, dtype: torch.dtype, rows: tuple[int, ...] | None, tmp_path: Path
) -> None:
    model = model.to(dtype)
    artifact = artifact_of(model, rows)
    before = state_bytes(model)
    salve.save_edited_model(model, artifact, tmp_path)
    assert state_bytes(model) == before
    assert salve.status(model).applied == ()

    copy = loaded(f"local-dir:{tmp_path}").to(dtype)
    edited = artifact.edit.edited(model)
    assert state_bytes(copy) == state_bytes(edited) != before
    assert torch.equal(logits(copy), logits(edited))
    EditArtifact.from_pretrained(tmp_path).revert_(copy)
    assert state_bytes(copy) == before


def test_timm_loads_from_the_hub_what_was_pushed_in_one_commit(
    default_hub: LoopbackHub, repo_id: str, model: nn.Module
) -> None:
    artifact, before = artifact_of(model), state_bytes(model)
    pushed = salve.push_edited_model(model, artifact, repo_id, token="hf_alice", tag="v1")
    assert (pushed.reference.repo_id, pushed.reference.subfolder) == (repo_id, None)

    api = HfApi(token="hf_alice")
    first, *older = api.list_repo_commits(repo_id)
    assert (first.commit_id, len(older)) == (pushed.reference.commit, 1)  # on the initial one
    assert MODEL | {"edit_config.json", "edit.safetensors", "README.md"} <= set(
        api.list_repo_files(repo_id)
    )
    edited = artifact.edit.edited(model)
    for name in (repo_id, f"{repo_id}@v1", f"{repo_id}@{pushed.reference.commit}"):
        copy = loaded(f"hf-hub:{name}")
        assert state_bytes(copy) == state_bytes(edited)
        assert torch.equal(logits(copy), logits(edited))
        EditArtifact.from_pretrained(repo_id).revert_(copy)
        assert state_bytes(copy) == before


def test_somebody_without_salve_loads_the_model_by_the_environment_alone(
    default_hub: LoopbackHub, repo_id: str, small: nn.Module, tmp_path: Path
) -> None:
    artifact = artifact_of(small)
    salve.push_edited_model(small, artifact, repo_id, token="hf_alice")
    code = (
        "import sys, timm; from safetensors.torch import save_file; "
        f"model = timm.create_model('hf-hub:{repo_id}', pretrained=True); "
        "assert 'salve_plugin' not in sys.modules; save_file(model.state_dict(), sys.argv[1])"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path / "state")]
    subprocess.run(command, check=True, timeout=120)
    copy = deepcopy(small)
    copy.load_state_dict(load_file(tmp_path / "state"))
    assert state_bytes(copy) == state_bytes(artifact.edit.edited(small))


def test_pristine_applied_hooked_and_loaded_models_give_the_same_bytes(
    small: nn.Module, tmp_path: Path
) -> None:
    artifact = artifact_of(small)
    salve.save_edited_model(small, artifact, tmp_path / "pristine")
    with artifact.edit.applied(small):
        before = state_bytes(small)
        salve.save_edited_model(small, artifact, tmp_path / "applied")
        assert state_bytes(small) == before
        salve.save_edited_model(salve.attach(small), artifact, tmp_path / "hooked")
    copy = loaded(f"local-dir:{tmp_path / 'pristine'}")  # knows of no edit, but has it
    salve.save_edited_model(copy, artifact, tmp_path / "loaded")
    first = contents(tmp_path / "pristine")
    for place in ("applied", "hooked"):
        assert contents(tmp_path / place) == first
    assert contents(tmp_path / "loaded")["model.safetensors"] == first["model.safetensors"]


def test_a_copy_is_made_of_the_touched_weights_only(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []
    kind = type(adapter.adapter_of(small))
    original = kind.export

    def watched(self: Any, model: nn.Module, folder: Path) -> None:
        seen.append(model)
        original(self, model, folder)

    monkeypatch.setattr(kind, "export", watched)
    salve.save_edited_model(small, artifact_of(small), tmp_path)
    (exported,) = seen
    own = {
        name
        for name, parameter in exported.named_parameters()
        if parameter is not small.get_parameter(name)
    }
    assert own == {"head.weight"}


def test_the_card_says_that_the_model_is_there_and_how_to_load_it(
    small: nn.Module, tmp_path: Path
) -> None:
    description = {"architecture": "test_vit", "hf_hub_id": "timm/test_vit.r160_in1k"}
    artifact = artifact_of(small.half())
    base = replace(artifact.edit.base, description=description)
    artifact = with_edit(artifact, replace(artifact.edit, base=base))
    for place, save, relation in (
        ("alone", artifact.save_pretrained, "adapter"),
        ("merged", lambda path: salve.save_edited_model(small, artifact, path), "finetune"),
    ):
        save(tmp_path / place)
        card = ModelCard.load(tmp_path / place / "README.md")
        assert card.data.to_dict()["base_model_relation"] == relation
        assert ("timm.create_model" in card.text) == (place == "merged")
        assert ("does not hold the model" in card.text) == (place == "alone")
        assert ("\nimport torch\n" in card.text) == (place == "merged")
        assert EditArtifact.inspect(tmp_path / place)["card"] == "as written"
    assert ".to(torch.float16)" in card.text


def test_the_model_stays_with_its_edit_and_goes_with_another(
    small: nn.Module, tmp_path: Path
) -> None:
    artifact, other = artifact_of(small), artifact_of(small, strength=1.0)
    salve.save_edited_model(small, artifact, tmp_path)
    before = contents(tmp_path)
    EditArtifact.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert contents(tmp_path) == before
    salve.save_edited_model(small, other, tmp_path)
    assert EditArtifact.verify(tmp_path) == other.digest
    assert state_bytes(loaded(f"local-dir:{tmp_path}")) == state_bytes(other.edit.edited(small))
    artifact.save_pretrained(tmp_path)
    assert not MODEL & set(contents(tmp_path))
    assert EditArtifact.inspect(tmp_path)["merged"] is None


@pytest.mark.parametrize("changed", sorted(MODEL))
@pytest.mark.parametrize("strength", [1.0, 2.0], ids=["another", "same"])
def test_of_a_model_that_somebody_changed_no_file_is_removed(
    small: nn.Module, tmp_path: Path, changed: str, strength: float
) -> None:
    salve.save_edited_model(small, artifact_of(small, strength=2.0), tmp_path)
    (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b" ")
    before = contents(tmp_path)
    artifact_of(small, strength=strength).save_pretrained(tmp_path)
    assert {name: contents(tmp_path)[name] for name in MODEL} == {
        name: before[name] for name in MODEL
    }
    assert EditArtifact.inspect(tmp_path)["merged"] is None


def test_pushing_again_makes_no_commit_and_another_edit_replaces_the_model(
    default_hub: LoopbackHub, repo_id: str, small: nn.Module
) -> None:
    first, second = artifact_of(small), artifact_of(small, strength=1.0)
    pushed = salve.push_edited_model(small, first, repo_id, token="hf_alice")
    again = salve.push_edited_model(small, first, repo_id, token="hf_alice")
    assert (again.created, again.reference) == (False, pushed.reference)
    assert first.push_to_hub(repo_id, token="hf_alice").created is False
    salve.push_edited_model(small, second, repo_id, token="hf_alice")
    assert state_bytes(loaded(f"hf-hub:{repo_id}")) == state_bytes(second.edit.edited(small))
    first.push_to_hub(repo_id, token="hf_alice")
    assert not MODEL & set(HfApi().list_repo_files(repo_id))
    assert len(HfApi().list_repo_commits(repo_id)) == 4


def test_no_file_of_the_model_is_held_in_memory(
    default_hub: LoopbackHub, repo_id: str, tmp_path: Path
) -> None:
    large = created("vit_tiny_patch16_224", num_classes=4)
    artifact = artifact_of(large)
    tracemalloc.start()  # sees bytes, not tensors
    try:
        salve.save_edited_model(large, artifact, tmp_path)
        salve.push_edited_model(large, artifact, repo_id, token="hf_alice")
        EditArtifact.verify(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "model.safetensors").stat().st_size / 2
