"""What the commands know about a model, and study folders that are none."""

import json
from pathlib import Path

import pytest
import timm
import torch

from salve_plugin.adapter import attach, installed_adapters
from salve_plugin.cli.study import ModelSpec, OpenModel, Study
from salve_plugin.errors import InputError, ReadError


def test_a_model_with_two_heads_on_different_tokens_has_its_classes_counted() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7).eval()
    opened = OpenModel(attach(model), lambda image: torch.zeros(3, 224, 224), None)
    assert opened.n_classes == 7


def test_an_adapter_that_is_not_installed_is_named_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no adapter 'keras' is installed; there are \['timm'\]"):
        ModelSpec("resnet18", adapter="keras").open()
    assert list(installed_adapters()) == ["timm"]


def test_a_study_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    study = Study(tmp_path, ModelSpec("test_vit", "weights.safetensors", 10), "images")
    study.save()
    assert Study.load(tmp_path) == study


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a study"),
        ("{}", "is not a study"),
        (json.dumps({"format_version": 99, "source": {"model": "a"}, "data": "b"}), "version 99"),
        (json.dumps({"format_version": 1, "source": {"modle": "a"}, "data": "b"}), "not a study"),
    ],
)
def test_a_damaged_study_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ReadError, match=message):
        Study.load(tmp_path)
