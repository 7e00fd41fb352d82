"""PEFT itself loads the adapters that we write, in an environment of its own."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salve_plugin import LowRankUpdate, attach, edit_at
from salve_plugin.share.lora import load_lora, save_lora

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1500)]

THEIRS = """
import sys
from pathlib import Path

import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
folder = Path(sys.argv[1])
images = load_file(folder / "images")["x"]


def network():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=7).eval()


with torch.no_grad():
    ours = PeftModel.from_pretrained(network(), folder / "ours").eval()
    result = {"ours": ours(images)}
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["qkv", "fc2"], init_lora_weights=False)
    theirs = get_peft_model(network(), config).eval()
    result["theirs"] = theirs(images)
    theirs.save_pretrained(folder / "theirs")
save_file(result, folder / "logits")
"""
"""Answers with our adapter and with one of its own, which it saves."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_peft_and_salve_read_each_others_adapters(
    peer_python: Callable[..., Path], tmp_path: Path
) -> None:
    python = peer_python("peft", "peft>=0.13", shared=True)
    torch.manual_seed(0)
    hooked = attach(timm.create_model("test_vit", num_classes=7).eval())
    edits = [
        edit_at(hooked, "unembed.hook_in", LowRankUpdate(draw(0, 7, 1), draw(1, 64, 1))),
        edit_at(hooked, "blocks.1.mlp.hook_post", LowRankUpdate(draw(2, 64, 2), draw(3, 192, 2))),
    ]
    images = draw(4, 2, 3, 160, 160)
    save_file({"x": images}, tmp_path / "images")
    save_lora(edits, tmp_path / "ours")
    command = [str(python), "-c", THEIRS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits = load_file(tmp_path / "logits")
    for name, own in (("ours", edits), ("theirs", load_lora(hooked, tmp_path / "theirs"))):
        for edit in own:
            edit.apply_(hooked)
        with torch.no_grad():
            torch.testing.assert_close(hooked(images), logits[name], rtol=1e-4, atol=1e-4)
        for edit in own:
            edit.revert_(hooked)
