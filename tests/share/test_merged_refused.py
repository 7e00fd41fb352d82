"""What is not shared as an edited model, and what one never replaces."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edited_models import MODEL, artifact_of, loaded
from hub_client import LoopbackHub
from huggingface_hub import HfApi
from safetensors.torch import save_file
from small_artifacts import contents, small_artifact, small_model, with_edit
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin import adapter
from salve_plugin.errors import (
    BaseMismatchError,
    EditStateError,
    InputError,
    SalveError,
    UnsupportedModelError,
    WriteError,
)
from salve_plugin.share.artifact import EditArtifact


def _trained_on(model: nn.Module, artifact: EditArtifact) -> None:
    artifact.edit.apply_(model)
    model.get_parameter("head.weight").data[0] *= 1.5


def _another_row(model: nn.Module, artifact: EditArtifact) -> None:
    artifact.edit.apply_(model)
    model.get_parameter("head.weight").data[3] *= 1.5


def _another_edit_too(model: nn.Module, artifact: EditArtifact) -> None:
    artifact.edit.apply_(model)
    artifact_of(model, strength=0.5).edit.apply_(model)


def _another_edit(model: nn.Module, artifact: EditArtifact) -> None:
    artifact_of(model, strength=0.5).edit.apply_(model)


def _another_base(model: nn.Module, artifact: EditArtifact) -> None:
    model.get_parameter("head.weight").data *= 2


def _edited_in_spite_of_it(model: nn.Module, artifact: EditArtifact) -> None:
    _another_base(model, artifact)
    artifact.edit.apply_(model, on_base_mismatch="warn")


@pytest.mark.filterwarnings("ignore:.*is not the weight that edit:UserWarning")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_trained_on, EditStateError, "changed since"),
        (_another_row, BaseMismatchError, "is not the weight"),
        (_another_edit_too, EditStateError, r"other edits.*strength 0\.5"),
        (_another_edit, EditStateError, "other edits"),
        (_another_base, BaseMismatchError, "is not the weight"),
        (_edited_in_spite_of_it, EditStateError, "makes of the pristine rows"),
    ],
)
def test_a_model_that_is_not_the_base_with_this_edit_is_refused(
    small: nn.Module,
    change: Callable[[nn.Module, EditArtifact], None],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = artifact_of(small, rows=(0, 1))
    change(small, artifact)
    # Found out before anything large is written.
    monkeypatch.delattr(type(adapter.adapter_of(small)), "export")
    with pytest.raises(error, match=message):
        salve.save_edited_model(small, artifact, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("form", ["pristine", "applied", "loaded"])
def test_a_model_that_differs_where_the_edit_writes_nothing_is_refused_or_warned_about(
    form: str, small: nn.Module, tmp_path: Path
) -> None:
    artifact = artifact_of(small, rows=(0, 1))
    if form == "applied":
        artifact.edit.apply_(small)
    elif form == "loaded":
        salve.save_edited_model(small, artifact, tmp_path / "first")
        small = loaded(f"local-dir:{tmp_path / 'first'}")
        salve.save_edited_model(small, artifact, tmp_path / "second")
    small.get_parameter("patch_embed.proj.bias").data[0] += 1  # fine-tuned with the same head
    with pytest.raises(BaseMismatchError, match="something else in the model is not that of its"):
        salve.save_edited_model(small, artifact, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.warns(UserWarning, match="something else in the model"):
        salve.save_edited_model(small, artifact, tmp_path / "new", on_base_mismatch="warn")
    again = loaded(f"local-dir:{tmp_path / 'new'}")
    artifact.revert_(again)
    assert str(artifact.edit.match(again)).endswith("is not that of its base")


PROGRAM = """\
import edited_models, salve_plugin

model = edited_models.created("test_vit", num_classes=4, img_size=32)
artifact = edited_models.artifact_of(model)
model.get_parameter("patch_embed.proj.bias").data[0] += 1
salve_plugin.save_edited_model(model, artifact, "new", on_base_mismatch="warn")
"""


def test_the_warning_names_the_line_that_shares_the_model(tmp_path: Path) -> None:
    # In a program of its own: here, checks of annotations stand between the calls.
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{program}:6: UserWarning: the parameters that edit" in done.stderr
    assert done.returncode == 0


@pytest.mark.filterwarnings("error")
def test_an_edit_that_does_not_know_its_whole_base_is_compared_where_it_touches(
    small: nn.Module, tmp_path: Path
) -> None:
    artifact = artifact_of(small)
    base = replace(artifact.edit.base, state=None)
    artifact = with_edit(artifact, replace(artifact.edit, base=base))
    small.get_parameter("patch_embed.proj.bias").data[0] += 1
    salve.save_edited_model(small, artifact, tmp_path)


def test_an_artifact_that_cannot_revert_the_model_is_refused(
    small: nn.Module, tmp_path: Path
) -> None:
    artifact = replace(artifact_of(small), pristine=None)
    with pytest.raises(InputError, match=r"EditArtifact\.of"):
        salve.save_edited_model(small, artifact, tmp_path)
    assert not list(tmp_path.iterdir())


class Old(adapter.Adapter):
    """An adapter from before there was `export`."""

    def __init__(self, other: adapter.Adapter) -> None:
        self.attach = other.attach  # type: ignore[method-assign] # the rest does not matter here

    def matches(self, model: nn.Module) -> bool:
        return True

    def attach(self, model: nn.Module, *, probe: Tensor | None = None) -> salve.HookedModel:
        raise NotImplementedError

    def create(
        self, name: str, *, checkpoint: str | None = None, num_classes: int | None = None
    ) -> nn.Module:
        raise NotImplementedError

    def transform(self, model: nn.Module) -> Callable[[Any], Tensor]:
        raise NotImplementedError


def test_a_model_without_an_adapter_or_one_that_cannot_write_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedModelError, match="no installed adapter knows"):
        salve.save_edited_model(small_model(), small_artifact(), tmp_path)
    families = adapter.installed_adapters()
    monkeypatch.setattr(adapter, "installed_adapters", lambda: {"old": Old(*families.values())})
    with pytest.raises(UnsupportedModelError, match=r"Old cannot write Sequential.*push_to_hub"):
        salve.save_edited_model(small_model(), small_artifact(), tmp_path)
    monkeypatch.setattr(Old, "export", lambda self, model, folder: None)
    with pytest.raises(UnsupportedModelError, match=r"did not write.*error of the adapter"):
        salve.save_edited_model(small_model(), small_artifact(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_writes_another_model_is_found_out(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = artifact_of(small)
    kind, base = type(adapter.adapter_of(small)), small.state_dict()

    def writes(state: dict[str, Tensor]) -> None:
        def export(self: Any, model: nn.Module, folder: Path) -> None:
            save_file(state, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")

        monkeypatch.setattr(kind, "export", export)

    writes(base)
    with pytest.raises(EditStateError, match=r"head\.weight"):
        salve.save_edited_model(small, artifact, tmp_path)
    edited = artifact.edit.edited(small).state_dict()
    for other in (
        {**edited, "patch_embed.proj.bias": edited["patch_embed.proj.bias"] + 1},
        {name: tensor for name, tensor in edited.items() if name != "patch_embed.proj.bias"},
    ):
        writes(other)
        with pytest.raises(
            UnsupportedModelError, match=r"other tensors.*: patch_embed\.proj\.bias"
        ):
            salve.save_edited_model(small, artifact, tmp_path)
    writes({**edited, "more": edited["head.bias"].clone()})
    with pytest.raises(UnsupportedModelError, match=r"other tensors.*: more"):
        salve.save_edited_model(small, artifact, tmp_path)
    writes({f"model.{name}": tensor for name, tensor in base.items()})
    with pytest.raises(UnsupportedModelError, match=r"no \['head\.weight'\]"):
        salve.save_edited_model(small, artifact, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_timm_could_not_load_is_refused(digits_network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"timm\.create_model did not build it"):
        salve.save_edited_model(digits_network, artifact_of(digits_network), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_as_before(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises((InputError, WriteError), match="model"):
        salve.save_edited_model(small, artifact_of(small), tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SalveError, match="file"):
        salve.save_edited_model(small, artifact_of(small), tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model.safetensors"]


def test_without_room_for_the_temporary_files_nothing_is_written(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(WriteError, match="TMPDIR"):
        salve.save_edited_model(small, artifact_of(small), tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(MODEL))
def test_a_model_of_somebody_else_is_never_replaced(
    name: str, small: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"another {name}"):
        salve.save_edited_model(small, artifact_of(small), tmp_path)
    assert contents(tmp_path) == {name: b"{}"}


def test_an_edited_model_that_was_changed_since_is_not_replaced(
    small: nn.Module, tmp_path: Path
) -> None:
    salve.save_edited_model(small, artifact_of(small), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"another config\.json"):
        salve.save_edited_model(small, artifact_of(small, strength=1.0), tmp_path)
    assert contents(tmp_path) == before


def test_a_model_of_somebody_else_on_the_hub_is_never_replaced(
    hub: LoopbackHub, repo_id: str, small: nn.Module, tmp_path: Path
) -> None:
    api = HfApi(endpoint=hub.url, token="hf_alice")
    api.create_repo(repo_id)
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    api.upload_folder(repo_id=repo_id, folder_path=tmp_path)
    with pytest.raises(InputError, match=r"another model\.safetensors"):
        salve.push_edited_model(
            small, artifact_of(small), repo_id, token="hf_alice", endpoint=hub.url
        )
    assert len(api.list_repo_commits(repo_id)) == 2
