"""Recordings whose concept, class and latents are known, since the test made them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from salve_plugin import HookedModel, record


@pytest.fixture
def planted(tiny: HookedModel, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Records `n` images of which some have a concept: it moves one input of the tiny model."""

    def make(
        n: int = 120, strength: float = 2.0, name: str = "acts", seed: int = 0
    ) -> SimpleNamespace:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % 4
        has = torch.rand(n, generator=draw) < torch.where(labels < 2, 0.7, 0.3)
        images = torch.randn(n, 3, generator=draw)
        images[:, 1] += strength * has
        loader = [(images[i : i + 32], labels[i : i + 32]) for i in range(0, n, 32)]
        acts = record(tiny, loader, folder=tmp_path / name, progress=False)
        return SimpleNamespace(acts=acts, x=acts.tensor(), labels=labels, has=has)

    return make
