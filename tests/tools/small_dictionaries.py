"""Small dictionaries of any learner, and their files, that several tests use."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from small_artifacts import read_as
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS, create
from salve_plugin.site import Site

CONFIG, WEIGHTS, CARD = "cfg.json", "sae_weights.safetensors", "README.md"
META = {"scale": 1.5, "note": None}
WIDTH, LATENTS = 6, 33
SITE = Site("unembed.hook_in", "fc", "in", "pooled", WIDTH, readers=("fc",))


def tensors_of(learner: str, seed: int = 0, latents: int = LATENTS) -> dict[str, Tensor]:
    """Random tensors for a dictionary of any learner."""
    random = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    shapes = {
        "mixing": (WIDTH, 4), "pairs": (4, WIDTH), "triples": (4, WIDTH),
        **({"offset": (WIDTH,)} if learner == "vl" else {}),
    }  # fmt: skip
    extra = {
        name: randn(*shapes.get(name, (latents,))).abs() + 0.1 for name in LEARNERS[learner].extra
    }
    if "magnitude_bias" in extra:
        extra["magnitude_bias"] = randn(latents)
    return {
        "atoms": functional.normalize(randn(latents, WIDTH), dim=1),
        "encoder_weight": randn(latents, WIDTH),
        "encoder_bias": randn(latents),
        "decoder_bias": randn(WIDTH),
        **extra,
    }


def dictionary_of(learner: str, seed: int = 0, **options: Any) -> Dictionary:
    meta = {"seed": seed, "held_out_r2": 0.75, "l0": 3, "note": "ü\u2028|<b>", "scale": 1 / 3}
    return Dictionary(tensors_of(learner, seed), create(learner, options), SITE, meta)


def tiny() -> Dictionary:
    """A dictionary of two latents: three kilobytes of files."""
    tensors = tensors_of("jumprelu", latents=2)
    return Dictionary(tensors, create("jumprelu", {}), SITE, {"scale": 0.1})


def small_dictionary(learner: str) -> Dictionary:
    """A dictionary of four latents of any learner."""
    options = {"topk": {"k": 2}, "mp": {"k": 2}}.get(learner, {})
    return Dictionary(tensors_of(learner, latents=4), create(learner, options), SITE, META)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_memory(files: Mapping[str, bytes]) -> Dictionary:
    return read_as(Dictionary, lambda name, limit: files[name])


def fields(folder: Path) -> Any:
    return json.loads((folder / CONFIG).read_text())
