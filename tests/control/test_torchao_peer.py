"""Networks that torchao quantized: recorded and explained as others, edited before, not after."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1500)]

THEIRS = """
import copy

import timm
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import salve_plugin as salve
from salve_plugin.errors import UnsupportedModelError

torch.set_num_threads(1)
torch.manual_seed(0)
network = timm.create_model("test_vit", num_classes=7).eval()
images = torch.randn(64, 3, 160, 160, generator=torch.Generator().manual_seed(0))
loader = [(part, torch.arange(16) % 7) for part in images.split(16)]
whole = salve.attach(network)
plain = salve.record(whole, loader, "unembed.hook_in", progress=False)
dictionary = salve.fit(plain, "topk", n_latents=16, k=4, steps=20)
edit = salve.suppress(whole, dictionary, latent=0, strength=2.0)
artifact = salve.EditArtifact.of(whole, edit)

quantized = copy.deepcopy(network)
quantize_(quantized, Int8WeightOnlyConfig())
hooked = salve.attach(quantized)
logits = hooked(images)

# Read, it works as any other network.
for site in ("unembed.hook_in", "blocks.0.mlp.hook_post"):
    acts = salve.record(hooked, loader, site, progress=False)
    sae = salve.fit(acts, "topk", n_latents=16, k=4, steps=20)
    fam = salve.LayerGradFam.of(hooked, sae)
    assert fam.attribute(images[:2], target=0).isfinite().all()
acts = salve.record(hooked, loader, "unembed.hook_in", progress=False)
weight, bias = hooked.unembed()
scores = acts.tensor() @ weight.T + bias
assert torch.allclose(scores, logits, atol=1e-4 * float(logits.std())), "unembed"
assert salve.alpha_crit(hooked, edit, acts).values.isfinite().any()
assert 0 <= salve.evaluate(hooked, loader).overall <= 1
assert plain.network_sha256 != acts.network_sha256, "another network"

# What would write to its weights refuses, and says what to do.
sae = salve.fit(acts, "topk", n_latents=16, k=4, steps=20)
through = salve.LowRankMap(sae.atoms[:1].T, sae.atoms[:1].T, torch.ones(1))
refused = {
    "suppress": lambda: salve.suppress(hooked, sae, latent=0, strength=1.0),
    "edit_at": lambda: salve.edit_at(hooked, "unembed.hook_in", through),
    "mask": lambda: salve.mask(hooked, 1, acts),
    "choose": lambda: salve.choose(hooked, salve.SuppressClass(1), acts),
    "apply": lambda: edit.apply_(hooked),
    "edited": lambda: edit.edited(hooked),
    "revert": lambda: edit.revert_(quantized),
    "artifact": lambda: salve.EditArtifact.of(hooked, edit),
    "save": lambda: salve.save_edited_model(hooked, artifact, "nowhere"),
    "audit": lambda: artifact.audit(network, quantized),
}
for name, call in refused.items():
    try:
        call()
    except UnsupportedModelError as error:
        assert "quantize" in str(error), (name, error)
    else:
        raise AssertionError(name)
assert not edit.match(quantized)
state = salve.status(quantized, [artifact])
assert not (state.applied or state.saved)
assert torch.equal(hooked(images), logits), "nothing was changed"

# Edited first, it keeps the edit in its quantized weights.
edited = edit.edited(network)
shifted = edited(images)
quantize_(edited, Int8WeightOnlyConfig())
try:
    edit.revert_(edited)
except UnsupportedModelError as error:
    assert "forget_" in str(error)
else:
    raise AssertionError("revert")
salve.forget_(edited)
assert not salve.status(edited).applied
salve.record(salve.attach(edited), loader, "unembed.hook_in", progress=False)
change = (shifted - network(images)).std()
assert (edited(images) - shifted).std() < 0.2 * change
print("done")
"""


def test_a_quantized_network_is_read_and_never_written(
    peer_python: Callable[..., Path], tmp_path: Path
) -> None:
    python = peer_python("torchao", "torchao>=0.15", shared=True)
    done = subprocess.run(
        [str(python), "-c", THEIRS],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        # An editable install is found through a .pth file, which their environment does not read.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("done")
    assert not list(tmp_path.iterdir())
