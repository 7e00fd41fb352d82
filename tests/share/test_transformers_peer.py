"""transformers itself loads the edited models that we write, in an environment of its own."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_models import artifact_of, created
from hub_client import LoopbackHub
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.share.artifact import EditArtifact

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1500)]

THEIRS = """
import json
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name, source in json.loads((folder / "sources.json").read_text()).items():
    model = AutoModelForImageClassification.from_pretrained(source).eval()
    images = load_file(folder / f"{name}.images")["x"].to(model.dtype)
    with torch.no_grad():
        logits = model(pixel_values=images).logits
    state = {f"state.{key}": value for key, value in model.timm_model.state_dict().items()}
    save_file({"logits": logits, **state}, folder / f"{name}.theirs")
"""
"""Loads folders and repositories, and writes what transformers has and computes."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("test_resnet", {}),
    "grey": ("test_resnet", {"num_classes": 7, "in_chans": 1}),
    "max_pool": ("test_resnet", {"num_classes": 7, "global_pool": "max"}),
    "size": ("test_vit", {"num_classes": 7, "img_size": 96}),
    "custom": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2},
    ),
}
"""What transformers would build otherwise if the arguments were not all in the configuration."""


@pytest.fixture(scope="module")
def transformers(peer_python: Callable[..., Path]) -> Path:
    """The Python of an environment with transformers, which shares our torch and timm."""
    return peer_python("transformers", "transformers>=5", shared=True)


def _edited(name: str, dtype: torch.dtype) -> tuple[nn.Module, EditArtifact]:
    architecture, arguments = MODELS[name]
    model = created(architecture, **arguments).to(dtype)
    return model, artifact_of(model)


def _run(python: Path, folder: Path, sources: dict[str, str]) -> None:
    """Have transformers load every source, and answer in the folder of that name."""
    (folder / "sources.json").write_text(json.dumps(sources))
    command = [str(python), "-c", THEIRS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@torch.no_grad()
def _images(model: nn.Module) -> Tensor:
    size: Any = salve.attach(model).description["input_size"]
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _compare(answer: Path, edited: nn.Module) -> None:
    theirs = load_file(answer)
    for name, tensor in edited.state_dict().items():
        assert torch.equal(theirs[f"state.{name}"], tensor), name
        assert theirs[f"state.{name}"].dtype == tensor.dtype
    images = _images(edited).to(next(edited.parameters()).dtype)
    torch.testing.assert_close(theirs["logits"], edited(images), rtol=1e-6, atol=0)


def test_transformers_loads_every_folder_and_computes_the_same_logits(
    transformers: Path, tmp_path: Path
) -> None:
    edited: dict[str, nn.Module] = {}
    for name in MODELS:
        for dtype in (torch.float32, torch.bfloat16):
            place = f"{name}-{dtype}"
            model, artifact = _edited(name, dtype)
            salve.save_edited_model(model, artifact, tmp_path / place)
            edited[place] = artifact.edit.edited(model)
            save_file({"x": _images(model)}, tmp_path / f"{place}.images")
    _run(transformers, tmp_path, {place: str(tmp_path / place) for place in edited})
    for place, model in edited.items():
        _compare(tmp_path / f"{place}.theirs", model)


def test_transformers_loads_the_repository(
    transformers: Path, default_hub: LoopbackHub, repo_id: str, tmp_path: Path
) -> None:
    model, artifact = _edited("grey", torch.float32)
    salve.push_edited_model(model, artifact, repo_id, token="hf_alice")
    save_file({"x": _images(model)}, tmp_path / "hub.images")
    _run(transformers, tmp_path, {"hub": repo_id})
    _compare(tmp_path / "hub.theirs", artifact.edit.edited(model))


def test_it_is_the_number_of_classes_that_must_not_be_among_the_arguments(
    transformers: Path, tmp_path: Path
) -> None:
    """If transformers ever accepts it, timm's own configuration need not be changed any more."""
    model, artifact = _edited("grey", torch.float32)
    salve.save_edited_model(model, artifact, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model_args"]["num_classes"] = 7
    path.write_text(json.dumps(config))
    save_file({"x": _images(model)}, tmp_path / "model.images")
    with pytest.raises(AssertionError, match="multiple values for keyword argument 'num_classes'"):
        _run(transformers, tmp_path, {"model": str(path.parent)})
