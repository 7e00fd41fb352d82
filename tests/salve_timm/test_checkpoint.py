"""Checkpoints as people have them: of Lightning, timm and other scripts, or refused in short."""

import argparse
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin.adapter import installed_adapters
from salve_plugin.errors import InputError, ReadError
from salve_timm.checkpoint import read_state

ADAPTER = installed_adapters()["timm"]
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def source() -> nn.Module:
    network: nn.Module = timm.create_model("test_resnet", num_classes=3)
    return network


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def lightning(state: State) -> dict[str, Any]:
    """Return what Lightning's trainer saves, with the objects that people have among theirs."""
    settings = argparse.Namespace(data=Path("photos"), classes={"a", "b"})
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.ones(())}},
        "optimizer_states": [{"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 1}]}],
        "lr_schedulers": [],
        "hparams_name": "config",
        "hyper_parameters": {
            "config": settings,
            "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3),
            "model_name": "test_resnet",
        },
    }


def same(state: State, path: Path) -> bool:
    loaded = ADAPTER.create("test_resnet", checkpoint=str(path))
    return bool(loaded.num_classes == 3) and all(
        torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items()
    )


@pytest.mark.parametrize(
    "prefix", ["", "model.", "backbone.", "net.", "module.", "_orig_mod.", "model._orig_mod."]
)
def test_prefixes_are_taken_off_and_classes_counted(
    prefix: str, source: nn.Module, tmp_path: Path
) -> None:
    state = source.state_dict()
    torch.save(lightning(prefixed(state, prefix)), tmp_path / "last.ckpt")
    assert same(state, tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "keys",
    [
        ("model",),
        ("state_dict_ema",),
        ("state_dict", "state_dict_ema"),  # the average is what timm's own reader takes
        ("model_state_dict",),
    ],
)
def test_weights_are_found_where_scripts_put_them(
    keys: tuple[str, ...], source: nn.Module, tmp_path: Path
) -> None:
    state = source.state_dict()
    others = {name: tensor + 1 for name, tensor in state.items()}
    saved = {key: state if key == keys[-1] else others for key in keys}
    torch.save({**saved, "args": argparse.Namespace(lr=1), "epoch": 3}, tmp_path / "last.pth.tar")
    assert same(state, tmp_path / "last.pth.tar")


def test_what_is_beside_the_model_is_left_out_and_said(source: nn.Module, tmp_path: Path) -> None:
    state = source.state_dict()
    more = {"loss.weight": torch.ones(3), **prefixed(state, "model.")}
    torch.save({"state_dict": more}, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"1 entries of .* are left out \(loss\.weight\)"):
        assert same(state, tmp_path / "last.ckpt")
    torch.save({**more, **prefixed(state, "net.")}, tmp_path / "alias.pt")  # one module, two names
    with pytest.warns(UserWarning, match="loss"):
        assert same(state, tmp_path / "alias.pt")
    teacher = prefixed({name: tensor + 1 for name, tensor in state.items()}, "teacher.")
    torch.save({**prefixed(state, "student."), **teacher}, tmp_path / "two.pt")
    with pytest.raises(InputError, match=r"several models of this form, \['student\.', 'teacher"):
        ADAPTER.create("test_resnet", checkpoint=str(tmp_path / "two.pt"))


def old_form(model: nn.Module, path: Path) -> None:
    torch.save(model, path, _use_new_zipfile_serialization=False)


def plain_pickle(model: nn.Module, path: Path) -> None:
    path.write_bytes(pickle.dumps(model))


def under_a_key(model: nn.Module, path: Path) -> None:
    torch.save({"model": model, "epoch": 3}, path)


@pytest.mark.parametrize("save", [torch.save, old_form, plain_pickle, under_a_key])
def test_a_pickled_module_is_refused_by_the_name_of_its_class(
    save: Callable[[nn.Module, Path], None], source: nn.Module, tmp_path: Path
) -> None:
    save(source, tmp_path / "whole.pt")
    with pytest.raises((InputError, ReadError)) as refused:
        ADAPTER.create("test_resnet", checkpoint=str(tmp_path / "whole.pt"))
    assert "timm.models.resnet.ResNet" in str(refused.value)
    assert "torch.save(model.state_dict(), 'weights.pth')" in str(refused.value)


class Command:
    """Pickled, it is a call that leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Return the call."""
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def test_objects_beside_the_weights_are_not_run(source: nn.Module, tmp_path: Path) -> None:
    saved = lightning(source.state_dict())
    saved["hyper_parameters"]["hook"] = Command(tmp_path / "mark")
    torch.save(saved, tmp_path / "last.ckpt")
    assert same(source.state_dict(), tmp_path / "last.ckpt")
    assert not (tmp_path / "mark").exists()
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (tmp_path / "mark").exists(), "it would have"


def test_what_does_not_fit_is_told_in_short(source: nn.Module, tmp_path: Path) -> None:
    def refused(state: State, **options: Any) -> str:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(InputError) as caught:
            ADAPTER.create(options.pop("name", "test_resnet"), checkpoint=str(tmp_path / "w.pth"),
                           **options)  # fmt: skip
        assert len(str(caught.value)) < 700
        return str(caught.value)

    state = source.state_dict()
    assert "1 of another shape (fc.weight (3, 96), not (7, 96))" in refused(
        {**state, "fc.bias": torch.zeros(7)}, num_classes=7
    )
    assert "missing (" in refused(state, name="test_vit")
    own_head = {"classifier.weight": state["fc.weight"], "classifier.bias": state["fc.bias"]}
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    message = refused({**prefixed(body, "backbone."), **own_head})
    assert "2 missing (fc.bias, fc.weight)" in message
    assert "2 under another prefix (classifier.weight, classifier.bias)" in message


def test_what_a_folder_has_instead_of_the_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"a folder without model\.safetensors; give the path of a"):
        read_state(str(tmp_path))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ReadError, match=r"one of its files: pytorch_model\.bin"):
        read_state(str(tmp_path))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ReadError, match=r"weights in several files are not read: join them"):
        read_state(str(tmp_path))
