"""The edited model is checked without being loaded, nor downloaded."""

from pathlib import Path

import pytest
from edited_models import MODEL, artifact_of, loaded
from hub_client import LoopbackHub
from huggingface_hub import HfApi
from torch import nn

import salve_plugin as salve
from salve_plugin.errors import (
    ArtifactError,
    HubError,
    MissingFileError,
)
from salve_plugin.share.artifact import EditArtifact


@pytest.mark.parametrize("name", sorted(MODEL))
def test_a_damaged_or_missing_model_does_not_verify(
    name: str, small: nn.Module, tmp_path: Path
) -> None:
    artifact = artifact_of(small)
    salve.save_edited_model(small, artifact, tmp_path)
    assert EditArtifact.verify(tmp_path) == artifact.digest
    data = (tmp_path / name).read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for damaged in (bytes(flipped), data[:-1], data + b"\0"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ArtifactError, match=f"{name} .*was changed"):
            EditArtifact.verify(tmp_path)
        assert EditArtifact.from_pretrained(tmp_path).digest == artifact.digest  # is not damaged
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "README.md")
    with pytest.raises(ArtifactError, match="was changed"):
        EditArtifact.verify(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(MissingFileError, match=f"no {name}"):
        EditArtifact.verify(tmp_path)


@pytest.mark.parametrize("name", sorted(MODEL))
def test_a_model_that_was_changed_or_removed_on_the_hub_does_not_verify(
    name: str, default_hub: LoopbackHub, repo_id: str, small: nn.Module
) -> None:
    artifact, api = artifact_of(small), HfApi(token="hf_alice")
    pushed = salve.push_edited_model(small, artifact, repo_id, token="hf_alice")
    assert EditArtifact.verify(repo_id) == artifact.digest
    api.upload_file(path_or_fileobj=bytes(50), path_in_repo=name, repo_id=repo_id)
    with pytest.raises(ArtifactError, match="was changed"):
        EditArtifact.verify(repo_id)
    api.delete_file(name, repo_id)
    with pytest.raises(MissingFileError, match=f"no {name}"):
        EditArtifact.verify(repo_id)
    assert EditArtifact.verify(repo_id, revision=pushed.reference.commit) == artifact.digest


def test_without_a_network_the_model_is_verified_in_the_cache_or_not_at_all(
    default_hub: LoopbackHub, repo_id: str, small: nn.Module
) -> None:
    artifact = artifact_of(small)
    salve.push_edited_model(small, artifact, repo_id, token="hf_alice")
    EditArtifact.from_pretrained(repo_id)
    with pytest.raises(HubError, match="not in the cache") as caught:
        EditArtifact.verify(repo_id, local_files_only=True)
    assert caught.value.reason == "not_cached"
    loaded(f"hf-hub:{repo_id}")
    default_hub.clear()
    assert EditArtifact.verify(repo_id, local_files_only=True) == artifact.digest
    assert default_hub.log() == []
    cached = Path(HfApi().hf_hub_download(repo_id, "model.safetensors")).resolve()
    cached.write_bytes(cached.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ArtifactError, match="was changed"):
        EditArtifact.verify(repo_id, local_files_only=True)


def test_reading_and_verifying_the_recipe_never_downloads_the_model(
    default_hub: LoopbackHub, repo_id: str, small: nn.Module
) -> None:
    artifact = artifact_of(small)
    salve.push_edited_model(small, artifact, repo_id, token="hf_alice")
    default_hub.clear()
    assert EditArtifact.from_pretrained(repo_id).digest == artifact.digest
    assert not any("model.safetensors" in request.path for request in default_hub.log())
    assert EditArtifact.verify(repo_id) == artifact.digest
    assert EditArtifact.inspect(repo_id)["merged"]
    assert not any("model.safetensors" in request.path for request in default_hub.log())
