"""Models by name: weights, preprocessing, and what goes wrong."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from salve_plugin.adapter import attach, installed_adapters
from salve_plugin.errors import InputError, ReadError, UnsupportedModelError

ADAPTER = installed_adapters()["timm"]


def test_a_checkpoint_s_weights_are_loaded_in_eval_mode(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=3)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        model = ADAPTER.create("test_resnet", checkpoint=str(tmp_path / name), num_classes=3)
        assert not model.training
        assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())


def test_the_description_names_architecture_and_classes(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    description = attach(source).description
    assert description["architecture"] == "test_resnet"
    assert description["num_classes"] == 3
    assert description["in_chans"] == 1
    assert description["hf_hub_id"] == "timm/test_resnet.r160_in1k"
    assert description["pretrained_tag"] == "r160_in1k"
    assert description["license"] == "apache-2.0"


def test_weights_of_a_file_are_not_said_to_be_timm_s_or_under_their_license(
    tmp_path: Path,
) -> None:
    source = timm.create_model("test_resnet", num_classes=3)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = ADAPTER.create("test_resnet", checkpoint=str(tmp_path / "w.safetensors"), num_classes=3)
    description = attach(model).description
    assert description["architecture"] == "test_resnet"
    assert {description[name] for name in ("hf_hub_id", "pretrained_tag", "license")} == {None}
    assert attach(source).description["license"] == "apache-2.0"
    assert ADAPTER.transform(model)(Image.new("RGB", (200, 180))).shape == (3, 160, 160)


def test_a_model_built_directly_is_described_by_its_class(digits_vit: torch.nn.Module) -> None:
    assert attach(digits_vit).description["architecture"] == "VisionTransformer"


def test_a_wrong_name_gets_close_matches() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no model 'resnet19'.*'resnet18'"):
        ADAPTER.create("resnet19")


def test_a_missing_checkpoint_is_a_read_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"gone\.pth"):
        ADAPTER.create("test_resnet", checkpoint=str(tmp_path / "gone.pth"))


@pytest.mark.parametrize("name", ["bad.safetensors", "bad.pth"])
def test_a_broken_checkpoint_is_a_read_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00" * 7)
    with pytest.raises(ReadError, match="cannot read the weights"):
        ADAPTER.create("test_resnet", checkpoint=str(tmp_path / name))


def test_a_checkpoint_of_another_model_is_an_input_error(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="does not fit 'test_resnet'"):
        ADAPTER.create("test_resnet", checkpoint=str(tmp_path / "w.safetensors"))


def test_weights_out_of_reach_are_a_read_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ReadError, match=r"cannot be fetched.*checkpoint="):
        ADAPTER.create("test_resnet")


def test_the_transform_is_timm_s_for_the_model() -> None:
    model: Any = timm.create_model("test_resnet")
    image = Image.new("RGB", (200, 180), (255, 0, 0))
    tensor = ADAPTER.transform(model)(image)
    assert tensor.shape == (3, 160, 160)
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    assert float(tensor[0, 0, 0]) == pytest.approx((1 - mean[0]) / std[0], abs=1e-5)
