"""Magnitude pruning: the neurons most tied to a concept are cut off from the classifier."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.rows import check_rows, row_tuple
from salve_plugin.control.writers.evidence import Recorded, head_inputs
from salve_plugin.control.writers.layer import head_of
from salve_plugin.control.writers.zeroing import zeroed_inputs
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.integers import whole
from salve_plugin.kinds import several
from salve_plugin.network import OnBaseMismatch


def prune(
    hooked: HookedModel,
    acts: Recorded,
    has: Bool[Tensor, " images"],
    *,
    top: int = 10,
    rows: Sequence[int] | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Edit:
    r"""Return the edit that zeroes the classifier's weights on a concept's neurons.

    A neuron is tied to the concept by $|\mu_1 - \mu_0| / s$: the shift of its mean between images
    with and without it, in units of its spread within the two (pooled standard deviation). The
    baseline that an eraser has to beat: it takes whole neurons, whatever else they say.

    Args:
        hooked: the attached model; nothing is applied.
        acts: recorded head inputs, all in memory.
        has: whether each image has the concept, in the recording's order.
        top: how many neurons are cut off.
        rows: classes for which they are; None means all.
        on_base_mismatch: "warn" takes a recording of another network.

    Raises:
        BaseMismatchError: if the recording is of another network than the model as it is.
        InputError: if there are not two images with and two without the concept, or `top` or a row
            is out of range.
        UnsupportedModelError: if the classifier is not one layer.
    """
    layer = head_of(hooked)
    x, _ = head_inputs(layer, acts, on_base_mismatch)
    if not isinstance(has, Tensor) or has.dtype != torch.bool or has.shape != (len(x),):
        kind = f"{has.dtype}{list(has.shape)}" if isinstance(has, Tensor) else type(has).__name__
        raise InputError(f"has {kind} is to hold one truth value for each of {len(x)} images")
    width = x.shape[1]
    if not 1 <= whole(top, "top") < width:
        raise InputError(f"top {top} is to be from 1 to below the {width} features")
    ties = shift_over_spread(x, has.cpu())
    chosen = ties.argsort(descending=True, stable=True)[:top].tolist()
    listed = None if rows is None else several(rows, "rows", "rows of the classifier")
    own = row_tuple(listed)
    check_rows(own, len(layer.weight), "reader")
    # All rows are one edit, whether they are named or not.
    own = None if own is None or len(own) == len(layer.weight) else tuple(sorted(own))
    note = (
        f"magnitude pruning: {top} of {width} neurons cut off, those whose mean shifts most with "
        f"the concept relative to their spread ({ties[chosen[-1]]:.2g} to {ties[chosen[0]]:.2g})"
    )
    return zeroed_inputs(layer, sorted(chosen), note, own)


def shift_over_spread(
    x: Float64[Tensor, "images width"], has: Bool[Tensor, " images"]
) -> Float64[Tensor, " width"]:
    """Return each feature's absolute shift with a concept, in units of its spread within groups.

    Raises:
        InputError: if there are fewer than two images with the concept, or without it.
    """
    groups = x[has], x[~has]
    if min(map(len, groups)) < 2:
        raise InputError(
            f"{len(groups[0])} images have the concept and {len(groups[1])} have not; both need "
            "two at least"
        )
    # About the first row: a mean of equal numbers may be rounded, and a constant neuron would have
    # a shift of that size in units of a spread of that size.
    groups = groups[0] - x[0], groups[1] - x[0]
    freedom = len(x) - 2
    squares = sum((group - group.mean(0)).square().sum(0) for group in groups)
    assert isinstance(squares, Tensor)
    shift = (groups[0].mean(0) - groups[1].mean(0)).abs()
    # A neuron that is constant within both groups and shifts is tied to the concept wholly; a dead
    # one not at all.
    spread = (squares / max(1, freedom)).sqrt()
    return torch.where(shift == 0, 0.0, shift / spread.clamp(min=1e-300))
