r"""The critical strength: how much suppression it takes to break a prediction, exactly.

The paper gives the closed form $\alpha_{crit} = z / \sum_j w_j a_j|c_j|$, the root of the logit's
first segment. The logit bends wherever a column is used up, at $1/|c_j|$, and the true root nearly
always lies behind the first bend; so here the piecewise linear equation is solved exactly
(`salve_plugin.control.knots`), and the closed form is kept as `critical_strength_linear`.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.knots import Knots
from salve_plugin.control.operators import Mode
from salve_plugin.errors import InputError

CHUNK = 2048
"""Images solved at once."""


def critical_strength(
    weight: Float[Tensor, " width"],
    bias: float | Tensor,
    direction: Float[Tensor, " width"],
    activations: Float[Tensor, "images width"],
    *,
    target: float | Tensor = 0.0,
    mode: Mode = "suppress",
    chunk: int | None = None,
) -> Float64[Tensor, " images"]:
    r"""Return the smallest $\alpha \ge 0$ that brings each image's logit down to the target.

    The logit is $z(\alpha) = b + \sum_j w_j a_j \max(0, 1-\alpha|c_j|)$ when suppressing, and the
    straight line $b + \sum_j w_j a_j (1+\alpha|c_j|)$ when enhancing, which falls only if the
    contributions along the direction are negative on the whole. Computed in float64.

    >>> one = torch.ones(1, 2)
    >>> critical_strength(torch.tensor([1.0, 3.0]), -1.0, torch.tensor([0.0, 1.0]), one)
    tensor([1.], dtype=torch.float64)
    >>> critical_strength(torch.tensor([1.0, 3.0]), 0.5, torch.tensor([0.0, 1.0]), one)
    tensor([inf], dtype=torch.float64)

    Args:
        weight: the class's row of the head, (width,).
        bias: the class's bias, one number or one for each image.
        direction: atom $c$, (width,).
        activations: head inputs, (images, width).
        target: logit to reach, one number or one for each image.
        mode: of the edit.
        chunk: images solved at once; memory beyond the result is a few MiB for each thread plus
            about this times the width in bytes. The result does not depend on it.

    Returns:
        0 where the logit is at or below the target to begin with; infinite where no strength up to
        1000/max|c| reaches it, in particular where the bias alone lies above it.

    Raises:
        InputError: if shapes do not fit, or a value is not finite.
    """
    height = _per_image(bias, activations, "bias") - _per_image(target, activations, "target")
    rows = weight.double().expand(1, -1)
    return solve(rows, direction, activations, height, mode, chunk)[0]


def critical_strength_linear(
    weight: Float[Tensor, " width"],
    bias: float | Tensor,
    direction: Float[Tensor, " width"],
    activations: Float[Tensor, "images width"],
    *,
    target: float | Tensor = 0.0,
    mode: Mode = "suppress",
    chunk: int | None = None,
) -> Float64[Tensor, " images"]:
    r"""Return the paper's closed form, $z / \sum_j w_j a_j|c_j|$ for target zero.

    The root of the unclamped line: where it exceeds $1/\max|c|$ it is not the critical strength.
    Arguments as for `critical_strength`; 0 where the logit is at or below the target already,
    infinite where the line does not fall.
    """
    height = _per_image(bias, activations, "bias") - _per_image(target, activations, "target")
    rows = weight.double().expand(1, -1)
    return solve(rows, direction, activations, height, mode, chunk)[1]


def critical_flip_strength(
    weight: Float[Tensor, "classes width"],
    bias: Float[Tensor, " classes"],
    direction: Float[Tensor, " width"],
    activations: Float[Tensor, "images width"],
    labels: Int64[Tensor, " images"],
    *,
    rows: Iterable[int] | None = None,
    mode: Mode = "suppress",
) -> Float64[Tensor, " images"]:
    r"""Return the smallest $\alpha \ge 0$ at which another class's logit reaches the label's.

    Each competitor is one exact problem for the difference of the two logits: edited rows move,
    others stand still. Costs one solution for each edited row, so with all rows of a 1000-class
    head about a thousand times a `critical_strength`.

    Args:
        weight: the head, (classes, width).
        bias: (classes,).
        direction: atom $c$, (width,).
        activations: head inputs, (images, width).
        labels: the class of each image, (images,).
        rows: the edited rows; None means all.
        mode: of the edit.

    Returns:
        0 for images that another class wins already, infinite where the label always wins.
    """
    return flip(weight, bias, direction, activations, labels, rows, mode)[0]


def flip(
    weight: Tensor,
    bias: Tensor,
    direction: Tensor,
    x: Tensor,
    labels: Tensor,
    rows: Iterable[int] | None,
    mode: Mode,
) -> tuple[Tensor, Tensor]:
    """Return the exact and the linear strength, each the smallest over all competitors."""
    check_labels(labels, len(weight))
    weight, bias = weight.double(), bias.double()
    rows = None if rows is None else tuple(rows)
    moving, still = split(weight, rows)
    values = torch.full((len(x),), torch.inf, dtype=torch.float64)
    linear = values.clone()
    logits = torch.addmm(bias, x.double(), weight.T)
    for label in present(labels):
        own = (labels == label).nonzero()[:, 0]
        inputs = x[own]
        # What does not depend on α is one number per image, so that each competitor is a problem of
        # one line only.
        own_still = bias[label] + (inputs.double() * still[label]).sum(1)
        edited = range(len(weight)) if rows is None else rows
        problems = [
            (
                moving[label] - moving[other],
                own_still - bias[other] - (inputs.double() * still[other]).sum(1),
            )
            for other in edited
            if other != label
        ]
        fixed = [m for m in range(len(weight)) if m != label and m not in set(edited)]
        if fixed:  # competitors that stand still: only the highest matters
            problems.append((moving[label], own_still - logits[own][:, fixed].amax(1)))
        for difference, height in problems:
            exact, line = solve(difference[None], direction, inputs, height, mode, None)
            # The decision breaks at the first competitor that arrives.
            values[own] = torch.minimum(values[own], exact)
            linear[own] = torch.minimum(linear[own], line)
    return values, linear


def solve(
    weight: Float64[Tensor, "one width"],
    direction: Tensor,
    activations: Tensor,
    height: Tensor,
    mode: Mode,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    r"""Return where height + $\sum_j u_j m_j(\alpha)$ is 0: exactly, and on its first line."""
    _check_shapes(weight, direction, activations, chunk)
    # A latent that reaches nothing moves no logit: below the target now, or never.
    if not bool(direction.any()):
        start = height + (activations.double() * weight).sum(1)
        never = torch.where(start <= 0, 0.0, torch.inf).double()
        return never, never.clone()
    knots = Knots.of(direction)
    exact, linear = torch.empty_like(height), torch.empty_like(height)
    size = chunk or CHUNK
    for first in range(0, len(activations), size):
        part = slice(first, first + size)
        sums = knots.contributions(activations[part], weight[0])
        start = sums.total() + height[part]
        if not bool(start.isfinite().all()):
            raise InputError("a weight, bias or activation is not finite: record them again")
        # Enhancing is a straight line, since factors only grow; suppressing starts as one, until
        # the first column is used up, and that start is the paper's closed form.
        fall = sums.steepness() if mode == "suppress" else -sums.steepness()
        line = torch.where(fall > 0, start / fall, torch.inf)
        linear[part] = torch.where(start <= 0, 0.0, line)
        if mode == "suppress":
            exact[part] = sums.first_root(height[part])
        else:
            exact[part] = torch.where(linear[part] <= knots.limit, linear[part], torch.inf)
    return exact, linear


def split(weight: Tensor, rows: Iterable[int] | None) -> tuple[Tensor, Tensor]:
    """Return the part of the head that the edit scales, and the part that stands still."""
    if rows is None:
        return weight, torch.zeros_like(weight)
    moving = torch.zeros_like(weight)
    index = torch.tensor(list(rows))
    moving[index] = weight[index]
    return moving, weight - moving


def present(labels: Tensor) -> list[int]:
    """Return the labels that occur, ascending."""
    return sorted(set(labels.tolist()))


def _per_image(value: float | Tensor, activations: Tensor, name: str) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != len(activations)):
        raise InputError(
            f"{name} of shape {tuple(tensor.shape)} is neither one number nor one for each of the "
            f"{len(activations)} images"
        )
    return tensor.expand(len(activations)).contiguous()


def _check_shapes(
    weight: Tensor, direction: Tensor, activations: Tensor, chunk: int | None
) -> None:
    widths = {weight.shape[1], len(direction), activations.shape[-1]}
    if len(widths) > 1 or activations.ndim != 2:
        raise InputError(
            f"widths do not fit: weight {weight.shape[1]}, direction {len(direction)}, activations "
            f"{tuple(activations.shape)}"
        )
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    if not bool(direction.isfinite().all()):
        raise InputError("the direction is not finite")


def check_labels(labels: Tensor, n_classes: int) -> None:
    """Refuse labels that are no row of the head.

    Raises:
        InputError: with the range found.
    """
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < n_classes):
        raise InputError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the head has classes "
            f"0 to {n_classes - 1}"
        )
