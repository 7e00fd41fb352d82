"""What is exported, timm loads bit for bit; what it would not load so, is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from small_artifacts import state_bytes
from torch import Tensor, nn

from salve_plugin.adapter import adapter_of
from salve_plugin.demo import digits
from salve_plugin.errors import UnsupportedModelError, WriteError
from salve_timm.export import export_model

SMALL_VIT = {
    "img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 64, "depth": 2,
    "num_heads": 2,
}  # fmt: skip


def created(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, **arguments)
    return model.eval()


def loaded(folder: Path) -> nn.Module:
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, size: list[int]) -> Tensor:
    """Logits of three images of a size, in the model's dtype."""
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    answer: Tensor = model(images.to(next(model.parameters()).dtype))
    return answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"num_classes": 7, "in_chans": 1, "global_pool": "max"}),
        ("test_vit", {"num_classes": 7, "img_size": 96, "drop_path_rate": 0.2}),
        ("test_vit", {"num_classes": 7, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", SMALL_VIT),
    ],
    ids=["plain", "resnet", "vit", "vit_avg", "custom"],
)
def test_timm_loads_the_same_tensors_and_computes_the_same_logits(
    name: str, arguments: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = created(name, **arguments).to(dtype)
    export_model(model, tmp_path)
    copy = loaded(tmp_path).to(dtype)
    assert state_bytes(copy) == state_bytes(model)
    size = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["input_size"]
    assert torch.equal(logits(copy, size), logits(model, size))


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_every_small_architecture_is_exported(name: str, tmp_path: Path) -> None:
    model = created(name, num_classes=5)
    export_model(model, tmp_path)
    assert state_bytes(loaded(tmp_path)) == state_bytes(model)


def test_the_arguments_are_all_written_but_the_number_of_classes(tmp_path: Path) -> None:
    export_model(created("test_resnet", num_classes=7, in_chans=1, global_pool="max"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 7
    assert config["model_args"] == {"global_pool": "max", "in_chans": 1}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    orders: dict[str, dict[str, int]] = {
        "one": {"num_classes": 7, "in_chans": 1},
        "two": {"in_chans": 1, "num_classes": 7},
    }
    for place, arguments in orders.items():
        (tmp_path / place).mkdir()
        export_model(created("test_resnet", **arguments), tmp_path / place)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def _channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


def _tied(model: nn.Module) -> None:
    blocks: Any = model.get_submodule("blocks")
    blocks[1].mlp.fc1.weight = blocks[0].mlp.fc1.weight


def _changed_head(model: nn.Module) -> None:
    reset: Any = model.reset_classifier
    reset(3)


@pytest.mark.parametrize(
    ("name", "change"),
    [("test_resnet", _channels_last), ("test_vit", _tied), ("test_vit", _changed_head)],
)
def test_strides_shared_memory_and_another_head_are_no_obstacle(
    name: str, change: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    model = created(name)
    change(model)
    export_model(model, tmp_path)
    assert state_bytes(loaded(tmp_path)) == state_bytes(model)


def test_the_model_and_the_random_numbers_stay_as_they_were(tmp_path: Path) -> None:
    model = created("test_vit").train()
    before, random = state_bytes(model), torch.random.get_rng_state()
    export_model(model, tmp_path)
    assert state_bytes(model) == before
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


def _another_stem(model: nn.Module) -> None:
    model.conv1 = nn.Conv2d(3, 32, 3, bias=False)


def _another_activation(model: nn.Module) -> None:
    block = model.get_submodule("layer4.0")
    assert isinstance(block.act2, nn.ReLU)
    block.act2 = nn.Sigmoid()


def _another_layer(model: nn.Module) -> None:
    model.extra = nn.Linear(2, 2)


def _too_precise(model: nn.Module) -> None:
    model.double().get_parameter("fc.bias").data += 1e-12


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_another_stem, r"conv1"),
        (_another_activation, "other logits"),
        (_another_layer, r"extra\.weight"),
        (_too_precise, r"float32, which cannot hold float64: \['fc\.bias'\]"),
    ],
)
def test_a_model_that_timm_would_build_otherwise_is_refused(
    change: Callable[[nn.Module], None], why: str, tmp_path: Path
) -> None:
    model = created("test_resnet")
    change(model)
    with pytest.raises(UnsupportedModelError, match=why):
        export_model(model, tmp_path)


def test_a_model_that_timm_did_not_create_is_refused(
    digits_network: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"timm\.create_model did not build it"):
        adapter_of(digits_network).export(digits_network, tmp_path)


def test_an_argument_without_a_json_form_is_named(tmp_path: Path) -> None:
    model = created("test_resnet", norm_layer=nn.BatchNorm2d)
    with pytest.raises(UnsupportedModelError, match="norm_layer"):
        export_model(model, tmp_path)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="missing"):
        export_model(created("test_resnet"), tmp_path / "missing")


def test_digits_networks_have_a_form_when_timm_creates_them(tmp_path: Path) -> None:
    """The demo builds its networks from timm's classes; through timm's factory they travel."""
    model = digits.build("vit")
    same = created("vit_tiny_patch16_224", **{**SMALL_VIT, "depth": 4})
    same.load_state_dict(model.state_dict())
    export_model(same, tmp_path)
    assert state_bytes(loaded(tmp_path)) == state_bytes(model)
