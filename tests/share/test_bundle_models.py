"""Edited models that lie beside members of a bundle are checked with it."""

from dataclasses import replace
from pathlib import Path

import pytest
from command import run
from edited_models import MODEL, artifact_of
from hub_client import LoopbackHub
from huggingface_hub import HfApi
from torch import nn

import salve_plugin as salve
from salve_plugin.errors import ArtifactError, HubError, MissingFileError, SalveError
from salve_plugin.share.bundle import EditBundle


@pytest.fixture
def bundle(small: nn.Module) -> EditBundle:
    one = artifact_of(small, rows=(0,))
    two = artifact_of(small, rows=(1, 2), strength=0.5)
    return EditBundle.of(small, {"one": one, "two": two})


@pytest.fixture
def saved(bundle: EditBundle, small: nn.Module, tmp_path: Path) -> Path:
    """The bundle in a folder, with the model that member "two" makes beside that member."""
    folder = bundle.save_pretrained(tmp_path / "bundle")
    salve.save_edited_model(small, bundle.members["two"], folder / "two")
    return bundle.save_pretrained(folder)  # which lists the model


@pytest.mark.parametrize("name", sorted(MODEL))
def test_a_damaged_or_missing_model_of_a_member_does_not_verify(
    name: str, saved: Path, bundle: EditBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert EditBundle.verify(saved) == bundle.digest
    assert run(capsys, "verify", saved)[1]["digest"] == bundle.digest
    path = saved / "two" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"two/{name} .*was changed"):
        EditBundle.verify(saved)
    assert EditBundle.from_pretrained(saved).digest == bundle.digest  # is not damaged
    path.unlink()
    with pytest.raises(MissingFileError, match=f"no two/{name}"):
        EditBundle.verify(saved)
    status, failed = run(capsys, "verify", saved)
    assert (status, failed["error"]) == (1, "MissingFileError")


@pytest.mark.parametrize("hub", ["plain"], indirect=True)
def test_it_is_checked_on_the_hub_without_being_downloaded(
    default_hub: LoopbackHub, repo_id: str, saved: Path, bundle: EditBundle
) -> None:
    api = HfApi(token="hf_alice")
    api.create_repo(repo_id)
    commit = api.upload_folder(repo_id=repo_id, folder_path=saved).oid
    assert EditBundle.verify(repo_id) == bundle.digest
    assert not any("model.safetensors" in request.path for request in default_hub.log())
    with pytest.raises(HubError, match="not in the cache"):
        EditBundle.verify(repo_id, local_files_only=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="two/config.json", repo_id=repo_id)
    with pytest.raises(ArtifactError, match=r"two/config\.json .*was changed"):
        EditBundle.verify(repo_id)
    assert EditBundle.verify(repo_id, revision=commit) == bundle.digest


def test_another_edit_of_the_member_takes_the_model_away(
    saved: Path, bundle: EditBundle, small: nn.Module
) -> None:
    other = artifact_of(small, rows=(1, 2), strength=0.75)
    EditBundle.of(small, {**bundle.members, "two": other}).save_pretrained(saved)
    assert not any((saved / "two" / name).exists() for name in MODEL)
    EditBundle.verify(saved)


def test_a_model_that_was_added_behind_the_bundles_back_is_refused(
    bundle: EditBundle, small: nn.Module, tmp_path: Path
) -> None:
    folder = bundle.save_pretrained(tmp_path / "bundle")
    member = replace(bundle.members["one"], evaluation=None)
    salve.save_edited_model(small, member, folder / "one")
    with pytest.raises(SalveError, match=r"one/edit_config\.json"):
        EditBundle.verify(folder)
