"""Rows of planted atoms, their recording, and the dictionary that knows the atoms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.hooks import HookedModel


class Known(NamedTuple):
    hooked: HookedModel
    dictionary: Dictionary
    acts: Activations


@pytest.fixture
def known(make_planted: Callable[..., Any], make_recorded: Callable[..., Any]) -> Known:
    """Of 16 atoms the first three each belong to a class; the head is that of class means."""
    planted = make_planted(rows=150, width=16, latents=16)
    recorded = make_recorded(planted.x, planted.labels)
    # The dual of the atoms reads every code without the others.
    encoder = torch.linalg.pinv(planted.atoms).T
    offset = torch.full((16,), 0.5)
    tensors = {
        "atoms": planted.atoms, "encoder_weight": encoder,
        "encoder_bias": -encoder @ offset, "decoder_bias": offset,
    }  # fmt: skip
    dictionary = Dictionary(tensors, TopK(k=8), recorded.acts.site, {})
    return Known(recorded.hooked, dictionary, recorded.acts)
