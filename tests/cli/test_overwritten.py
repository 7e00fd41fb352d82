"""A study whose checkpoint was overwritten: its recording is of another network by then."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from salve_plugin.cli import main

Change = Callable[[dict[str, Tensor]], None]


def _train_on(state: dict[str, Tensor]) -> None:
    for name in state:
        state[name] = state[name] * 1.01 if state[name].is_floating_point() else state[name]


def _replace_the_head(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = state["fc.weight"] * 1.01


def _status(*arguments: object) -> object:
    with pytest.raises(SystemExit) as exit_info:
        main([*(str(each) for each in arguments), "--json"])
    return exit_info.value.code


def _overwrite(checkpoint: Path, change: Change) -> None:
    state = load_file(checkpoint)
    change(state)
    save_file(state, checkpoint)


def test_every_command_refuses_a_study_whose_checkpoint_is_of_another_network(
    image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, study = tmp_path / "weights.safetensors", tmp_path / "study"
    shutil.copy(checkpoint, weights)
    made = _status(
        "discover", "--model", "test_resnet", "--checkpoint", weights, "--num-classes", 10,
        "--data", image_folder, "--out", study, "--latents", 16,
    )  # fmt: skip
    assert made in (0, None)
    image = next((image_folder / "3").iterdir())
    commands = [
        ("features", study),
        ("explain", study, image, "--class", "3", "--out", tmp_path / "explained"),
        ("alpha-crit", study, "--class", "3"),
        ("edit", study, "--latent", 2, "--strength", 1, "--pictures", 0, "--out", tmp_path / "e"),
    ]
    _overwrite(weights, _replace_the_head)
    for command in commands:
        assert _status(*command) in (0, None)
    _overwrite(weights, _train_on)
    for command in commands:
        capsys.readouterr()
        assert _status(*command) == 1
        failed = json.loads(capsys.readouterr().out)
        assert failed["error"] == "BaseMismatchError"
        assert f"the recording in {study} is of network" in failed["message"]
        assert str(weights) in failed["message"]
    weights.unlink()
    assert _status("features", study) in (0, None)  # it is of the recording alone
