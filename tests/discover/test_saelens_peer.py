"""SAELens itself reads what we write and writes what we read, in an environment of its own."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_client import LoopbackHub
from safetensors.torch import load_file, save_file
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.discover.saelens import load_saelens, save_saelens
from salve_plugin.discover.saelens_layout import written_as
from salve_plugin.site import Site

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1500)]

WIDTH, LATENTS = 12, 30
SITE = Site("unembed.hook_in", "fc", "in", "pooled", WIDTH)

OURS = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE

folder = Path(sys.argv[1])
x = load_file(folder / "rows.safetensors")["x"]
for each in sorted(path for path in folder.iterdir() if path.is_dir()):
    sae = SAE.load_from_disk(each)
    code = sae.encode(x)
    save_file({"code": code, "rows": sae.decode(code)}, each / "theirs.safetensors")
"""
"""Reads each folder as SAELens does, and writes what SAELens makes of the rows."""

FROM_HUB = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE

folder, repo_id = Path(sys.argv[1]), sys.argv[2]
x = load_file(folder / "rows.safetensors")["x"]
for learner in sys.argv[3:]:
    sae = SAE.from_pretrained(repo_id, learner)
    code = sae.encode(x)
    save_file({"code": code, "rows": sae.decode(code)}, folder / f"{learner}.safetensors")
"""
"""Downloads each subfolder as SAELens does, and writes what SAELens makes of the rows."""

THEIRS = """
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.registry import get_sae_class

folder = Path(sys.argv[1])
x = load_file(folder / "rows.safetensors")["x"]
width, latents = x.shape[1], int(sys.argv[2])
torch.manual_seed(0)
for architecture in ("standard", "topk", "jumprelu", "gated"):
    for centred in (True, False):
        kind, config = get_sae_class(architecture)
        more = {"k": 5, "rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
        sae = kind(config(d_in=width, d_sae=latents, apply_b_dec_to_input=centred, **more))
        with torch.no_grad():
            for name, value in sae.named_parameters():
                value.copy_(torch.randn_like(value) * (0.3 if name == "r_mag" else 1))
        each = folder / f"{architecture}_{centred}"
        sae.save_model(each)
        code = sae.encode(x)
        save_file({"code": code, "rows": sae.decode(code)}, each / "theirs.safetensors")
"""
"""Writes folders as SAELens does, and what SAELens makes of the rows."""


@pytest.fixture(scope="module")
def sae_lens(peer_python: Callable[..., Path]) -> Path:
    """The Python of an environment with sae-lens, which shares our torch."""
    return peer_python("sae-lens", "sae-lens", shared=True)


def _run(*command: str, **variables: str) -> None:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{command[:4]}: {done.stderr[-3000:]}"


def _rows(folder: Path) -> torch.Tensor:
    x = 2 * torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({"x": x}, folder / "rows.safetensors")
    return x


def _dictionary(learner: str, seed: int) -> Dictionary:
    random = torch.Generator().manual_seed(seed)
    names = create(learner, {}).extra
    tensors = {
        "atoms": functional.normalize(torch.randn(LATENTS, WIDTH, generator=random), dim=1),
        "encoder_weight": torch.randn(LATENTS, WIDTH, generator=random),
        "encoder_bias": torch.randn(LATENTS, generator=random),
        "decoder_bias": torch.randn(WIDTH, generator=random),
        **{name: 0.1 + torch.rand(LATENTS, generator=random) for name in names},
    }
    return Dictionary(tensors, create(learner, {"k": 5} if "topk" in learner else {}), SITE)


def test_sae_lens_codes_and_reconstructs_as_we_do_with_what_we_write(
    sae_lens: Path, tmp_path: Path
) -> None:
    x = _rows(tmp_path)
    ours = {learner: _dictionary(learner, seed) for seed, learner in enumerate(written_as())}
    for learner, dictionary in ours.items():
        save_saelens(dictionary, tmp_path / learner)
    _run(str(sae_lens), "-c", OURS, str(tmp_path))
    for learner, dictionary in ours.items():
        theirs = load_file(tmp_path / learner / "theirs.safetensors")
        code = dictionary.encode(x)
        assert 0 < float((code > 0).float().mean()) < 1
        torch.testing.assert_close(theirs["code"], code, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs["rows"], dictionary(x), rtol=1e-5, atol=1e-5)


def test_what_we_push_sae_lens_pulls_and_codes_as_we_do(
    sae_lens: Path, hub: LoopbackHub, repo_id: str, hf_home: Path, tmp_path: Path
) -> None:
    x = _rows(tmp_path)
    pulled = {}
    for seed, learner in enumerate(written_as()):
        dictionary = _dictionary(learner, seed)
        dictionary.push_to_hub(repo_id, subfolder=learner, token="hf_alice", endpoint=hub.url)
        pulled[learner] = Dictionary.from_pretrained(repo_id, subfolder=learner, endpoint=hub.url)
        assert pulled[learner].digest == dictionary.digest
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(hf_home / "theirs"),
        "HF_HUB_DISABLE_XET": str(int(not hub.xet)),
    }
    _run(str(sae_lens), "-c", FROM_HUB, str(tmp_path), repo_id, *pulled, **variables)
    for learner, dictionary in pulled.items():
        theirs = load_file(tmp_path / f"{learner}.safetensors")
        code = dictionary.encode(x)
        assert 0 < float((code > 0).float().mean()) < 1
        torch.testing.assert_close(theirs["code"], code, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs["rows"], dictionary(x), rtol=1e-5, atol=1e-5)


def test_sae_lens_refuses_what_it_has_no_architecture_for(sae_lens: Path, tmp_path: Path) -> None:
    _rows(tmp_path)
    _dictionary("l1", 0).save_pretrained(tmp_path / "l1")
    with pytest.raises(AssertionError, match=r"salve_plugin\.l1"):
        _run(str(sae_lens), "-c", OURS, str(tmp_path))


def test_we_reconstruct_as_sae_lens_does_with_what_it_writes(
    sae_lens: Path, tmp_path: Path
) -> None:
    x = _rows(tmp_path)
    _run(str(sae_lens), "-c", THEIRS, str(tmp_path), str(LATENTS))
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 8
    for folder in folders:
        dictionary = load_saelens(folder, SITE)
        theirs = load_file(folder / "theirs.safetensors")
        torch.testing.assert_close(dictionary(x), theirs["rows"], rtol=1e-5, atol=2e-5)
        norms = load_file(folder / "sae_weights.safetensors")["W_dec"].norm(dim=1)
        if json.loads((folder / "cfg.json").read_text())["architecture"] == "topk":
            norms = torch.ones(LATENTS)  # SAELens multiplied its codes by the norms itself
        code = theirs["code"] * norms
        torch.testing.assert_close(dictionary.encode(x), code, rtol=1e-5, atol=2e-5)
