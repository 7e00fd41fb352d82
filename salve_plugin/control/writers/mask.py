"""The mask: a class's bias lowered beyond reach, the recommended edit that suppresses a class."""

from collections.abc import Iterable, Sequence
from math import log

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.writers.evidence import (
    Recorded,
    check_seen,
    class_indices,
    head_inputs,
    listed,
    second_moment,
    solved,
)  # fmt: skip
from salve_plugin.control.writers.layer import Layer, head_of
from salve_plugin.errors import UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch

CLEARANCE = 12 * log(10)
"""A logit lower by this much has 1e-12 of the other's probability."""

LEAST_CONSTANT = 0.1
"""The least reading, of a constant 1, that counts as one: at a smaller one the row would have to be
changed more than tenfold, and an image a little further off would read a negative constant."""


def mask(
    hooked: HookedModel,
    label: int | str | Sequence[int | str],
    acts: Recorded,
    *,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Edit:
    r"""Return the edit that suppresses classes by lowering their biases beyond reach.

    $b_y' = b_y - (\max_i m_i + (\max_i m_i - \min_i m_i) + 12 \ln 10)$, where $m_i = z_{iy} -
    \min_{k \notin Y} z_{ik}$ is how far image i's logit of the class lies above the lowest of the
    classes that stay. So on the recorded images the class has less than $10^{-12}$ of the
    probability of any other class, and it keeps that distance on images where its lead is larger
    by once more the recorded range. The number is finite, so that losses stay finite; all other
    logits stay as they are, bit for bit, so that their probabilities are the old ones, renormalized
    without the class. What the features know of the class stays in them.

    In a head without bias a constant is read off the features: g is the least-squares solution of
    $g^Tx = 1$ on every other image, and $w_y' = w_y - t g$ with t large enough for every image.

    The logits are those of the classifier without edits on it: an edit that raises the class's
    logit beyond the reserve can undo a mask beside it.

    Args:
        hooked: the attached model.
        label: the class, by index or by the recording's name, or several.
        acts: recorded head inputs with labels, some of the class among them. All are in memory.
        on_base_mismatch: "warn" takes a recording of another network.

    Raises:
        BaseMismatchError: if the recording is of another network than the model as it is.
        InputError: if there are no images of the class, or it is none of the head.
        UnsupportedModelError: if the classifier is not one layer, or has no bias and no constant
            can be read off its inputs.
    """
    layer = head_of(hooked)
    x, labels = head_inputs(layer, acts, on_base_mismatch)
    classes = class_indices(label, layer, acts)
    check_seen(classes, labels)
    leads = _leads(layer, x, classes)
    lowering, reserve = _lowering(leads.amax(0), leads.amin(0))
    note = _note(classes, lowering, reserve, len(x))
    if layer.bias is not None:
        return lowered(layer, lowering, note, classes)
    constant = _constant(layer, x)
    # Where the least constant is read, the logit is lowered by just as much as a bias would.
    factor = lowering / (x @ constant).min()
    update = LowRankUpdate(-factor[:, None], constant[:, None])
    note += "; lowered by that or more, by a constant read off the features"
    return layer.updated(update, note, classes)


def lowered(
    layer: Layer, lowering: Float64[Tensor, " labels"], note: str, classes: Sequence[int]
) -> Edit:
    """Return the edit that lowers the biases of classes."""
    # An update of rank 0: only the bias moves.
    nothing = layer.weight.new_zeros(layer.weight.shape[1], 0)
    left = layer.weight.new_zeros(len(lowering), 0)
    return layer.updated(LowRankUpdate(left, nothing, -lowering), note, classes)


def lowerings(
    layer: Layer, parts: Iterable[Tensor]
) -> tuple[Float64[Tensor, " classes"], list[str]]:
    """Return by how much `mask` lowers each class alone, and what it notes of that.

    Args:
        layer: the classifier.
        parts: what it read (rows, width), in pieces: once for all classes.
    """
    highest = torch.full((len(layer.weight),), -torch.inf, dtype=torch.float64)
    lowest, count = -highest, 0
    for x in parts:
        logits = layer.output(x.double())
        least = logits.topk(2, dim=1, largest=False)
        # The lowest of the others: the lowest of all, but for the class that is the lowest itself.
        others = (
            least.values[:, :1]
            .expand_as(logits)
            .scatter(1, least.indices[:, :1], least.values[:, 1:])
        )
        leads = logits - others
        highest, lowest = highest.maximum(leads.amax(0)), lowest.minimum(leads.amin(0))
        count += len(x)
    lowering, reserve = _lowering(highest, lowest)
    notes = [
        _note((label,), lowering[label, None], reserve[label, None], count)
        for label in range(len(lowering))
    ]
    return lowering, notes


def _lowering(highest: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how much classes are lowered, and what of it is in reserve."""
    reserve = highest - lowest
    # A class that is far below all others everywhere is lowered all the same: never raised.
    return (highest + reserve).clamp(min=0) + CLEARANCE, reserve


def _note(classes: Sequence[int], lowering: Tensor, reserve: Tensor, images: int) -> str:
    return (
        f"mask: class {listed(classes)} lowered by {_numbers(lowering)} logits; on {images} "
        f"recorded images at least {CLEARANCE:.1f} below every other class, with "
        f"{_numbers(reserve)} to spare"
    )


def _leads(
    layer: Layer, x: Float64[Tensor, "images width"], classes: Sequence[int]
) -> Float64[Tensor, "images labels"]:
    """Return by how much each class's logit exceeds the lowest of the classes that stay."""
    others = [row for row in range(len(layer.weight)) if row not in set(classes)]
    parts = []
    for rows in torch.split(x, 4096):
        logits = layer.output(rows)
        parts.append(logits[:, list(classes)] - logits[:, others].amin(1, keepdim=True))
    return torch.cat(parts)


def _constant(layer: Layer, x: Float64[Tensor, "images width"]) -> Float64[Tensor, " width"]:
    """Return g with gᵀx about 1, and at least `LEAST_CONSTANT`, for every image."""
    # Fitted on every other image and checked on all: on the images that it was fitted on any
    # constant can be read once there are as many features as images.
    half = x[::2]
    # The normal equations of gᵀx = 1, with a ridge: (C + ηI) g = E[x].
    moment = second_moment(layer, half.T @ half / len(half))
    mean = half.mean(0)
    direction = solved(moment, mean[:, None], 1e-4)[:, 0]
    least = float((x @ direction).min())
    if least < LEAST_CONSTANT and bool(mean.any()):
        # Of few images least squares may dip below zero elsewhere. Inputs that are never negative,
        # as after a ReLU, all lie on one side along their mean, if less evenly.
        direction = mean / (mean @ mean)
        least = float((x @ direction).min())
    if least < LEAST_CONSTANT:
        raise UnsupportedModelError(
            f"'{layer.path}' has no bias to lower, and no constant can be read off its inputs: "
            f"the best direction reads {least:.2g} of 1 on one of {len(x)} images. Suppress the "
            "class with salve.suppress or salve.refit_head, or record more images"
        )
    return direction


def _numbers(values: Float64[Tensor, " labels"]) -> str:
    return listed([f"{value:.4g}" for value in values.tolist()])
