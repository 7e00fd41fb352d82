"""Zeroed rows and columns of a layer, exactly zero, as a low-rank update."""

from collections.abc import Sequence

import torch

from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.writers.evidence import class_indices, listed
from salve_plugin.control.writers.layer import Layer, head_of
from salve_plugin.hooks import HookedModel


def zero_row(hooked: HookedModel, label: int | Sequence[int]) -> Edit:
    r"""Return the edit that sets a class's row of the classifier to zero and keeps its bias.

    $W' = W - e_y w_y^T$. The trivial control: what suppresses a class has to do better. The class's
    logit becomes its bias for every image, so it still wins where all others are below that; `mask`
    does not have this weakness.

    Args:
        hooked: the attached model.
        label: the class, by index, or several.

    Raises:
        InputError: if it is no class of the head.
        UnsupportedModelError: if the classifier is not one layer.
    """
    layer = head_of(hooked)
    rows = class_indices(label, layer)
    return zeroed_outputs(
        layer, rows, f"zeroed row: the weights of class {listed(rows)} become zero", bias=False
    )


def zeroed_outputs(layer: Layer, rows: Sequence[int], note: str, *, bias: bool) -> Edit:
    """Return the edit that sets some outputs' weights to zero, and their biases where asked."""
    # Products with ones and zeros are exact, so that w + (-w) is zero and not nearly so.
    left = torch.eye(len(rows), dtype=torch.float64)
    shift = -layer.bias[list(rows)] if bias and layer.bias is not None else None
    return layer.updated(LowRankUpdate(left, -layer.weight[list(rows)].T, shift), note, rows)


def zeroed_inputs(
    layer: Layer, columns: Sequence[int], note: str, rows: Sequence[int] | None = None
) -> Edit:
    r"""Return the edit that sets some inputs' weights to zero: $W' = W - W_S e_S^T$."""
    weight = layer.weight if rows is None else layer.weight[list(rows)]
    right = torch.zeros(layer.weight.shape[1], len(columns), dtype=torch.float64)
    right[list(columns), range(len(columns))] = 1
    return layer.updated(LowRankUpdate(-weight[:, list(columns)], right), note, rows)
