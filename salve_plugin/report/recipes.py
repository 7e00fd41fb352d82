"""Operators of the bench beyond the gate: what their edits need that only Python can compute."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from salve_plugin.control.erasers import fold_latents
from salve_plugin.control.making import edit_at
from salve_plugin.control.operators import LowRankMap
from salve_plugin.control.writers.layer import head_of
from salve_plugin.control.writers.mask import lowered, lowerings
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.report.bench import shared_fields
from salve_plugin.report.scripts import array

FOLDS = 2**19
"""Numbers of read-outs that are computed ahead, a width for each latent."""
FOLDS_A_FILE = 64
_ROWS = 4096


def folds(
    hooked: HookedModel, dictionary: Dictionary, acts: Activations, order: Sequence[int]
) -> tuple[list[int], dict[str, Mapping[str, Any]]]:
    """Return the latents that the page can fold, and by key what it folds them with.

    As `salve.erase(hooked, salve.latent_concept(dictionary, acts, latent), "fold")` folds each;
    none where no weights can take a fold over.

    Args:
        hooked: the attached model.
        dictionary: of what its classifier reads.
        acts: recording of that.
        order: latents, those that matter most first.
    """
    # Those that classes depend on come first, so that few latents that matter are left out.
    chosen = list(order[: max(1, FOLDS // acts.width)])
    try:
        rows = (batch.x for batch in acts.batches(_ROWS))
        fold = fold_latents(dictionary, chosen, rows, shrinkage=None)
        # Any of the folds alone, for the fields of the recipe that all of them share.
        one = LowRankMap(fold.map.write[:, :1], fold.map.read[:, :1], torch.ones(1).double())
        fields = shared_fields(edit_at(hooked, dictionary.site.name, one))
    except (InputError, UnsupportedModelError):
        return [], {}
    reads = fold.map.read.T
    pages: dict[str, Mapping[str, Any]] = {"bench/fold": dict(fields)}
    for start in range(0, len(chosen), FOLDS_A_FILE):
        part = slice(start, start + FOLDS_A_FILE)
        pages[f"folds/{start // FOLDS_A_FILE}"] = {
            "reads": array(reads[part], "f64"),
            "offsets": array(fold.map.offset[part], "f64"),
            "foldability": array(fold.foldability[part], "f32"),
        }
    return chosen, pages


def masks(hooked: HookedModel, acts: Activations) -> dict[str, Mapping[str, Any]]:
    """Return by key what `salve.mask` makes of each class; nothing for a head without biases."""
    try:
        layer = head_of(hooked)
    except UnsupportedModelError:
        return {}
    if layer.bias is None:
        return {}
    lowering, notes = lowerings(layer, (batch.x for batch in acts.batches(_ROWS)))
    edit = lowered(layer, lowering[:1], notes[0], [0])
    return {
        "bench/mask": {**shared_fields(edit), "lowering": array(lowering, "f64"), "notes": notes}
    }
