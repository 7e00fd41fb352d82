"""What the commands know about a model, and study folders that are none."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from salve_plugin.adapter import attach, installed_adapters
from salve_plugin.cli import main
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


def test_a_model_with_one_logit_has_two_classes_in_every_command(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=1).eval()
        model.get_submodule("fc").get_parameter("weight").data.normal_()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for name, digit in (("healthy", "3"), ("ill", "7")):
        shutil.copytree(image_folder / digit, tmp_path / "images" / name)

    def said(*command: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*command])
        output = "".join(capsys.readouterr())
        assert ended.value.code == 0, output
        return output

    study, weights, images = (str(tmp_path / each) for each in ("study", "weights.pt", "images"))
    said(
        "discover", "--model", "test_resnet", "--checkpoint", weights, "--data", images,
        "--out", study, "--latents", "8",
    )  # fmt: skip
    assert "healthy" in said("features", study)
    edit = str(tmp_path / "edit")
    for command in (["alpha-crit", study], ["edit", study, "--strength", "2", "--out", edit]):
        assert "ill" in said(*command, "--class", "ill")
    said("evaluate", edit, "--data", images, "--checkpoint", weights)
    # Two rows of rivals there are not, and the row of class 1 neither.
    for rows in ("rivals", "class"):
        with pytest.raises(SystemExit) as ended:
            main(["edit", study, "--class", "ill", "--rows", rows, "--out", str(tmp_path / "no")])
        assert ended.value.code == 1
    assert "no rivals" in "".join(capsys.readouterr())
