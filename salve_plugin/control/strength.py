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

from salve_plugin.control.flips import flip
from salve_plugin.control.operators import Mode
from salve_plugin.control.operators.gate import check_mode
from salve_plugin.control.solving import solve
from salve_plugin.errors import InputError
from salve_plugin.kinds import of_kind


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
        InputError: if shapes do not fit, a value is not finite, or the mode is none.
    """
    return _roots(weight, bias, direction, activations, target, mode, chunk)[0]


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
    return _roots(weight, bias, direction, activations, target, mode, chunk)[1]


@torch.no_grad()
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
    others stand still. The time is that of a few products of the images with the edited rows:
    bounds leave few competitors to be solved.

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

    Raises:
        InputError: if a label is no class, or a value is not finite.
    """
    return flip(weight, bias, direction, activations, labels, rows, mode)[0]


# A model's own row and bias want gradients, which writing into buffers has none of.
@torch.no_grad()
def _roots(
    weight: Tensor, bias: float | Tensor, direction: Tensor, activations: Tensor,
    target: float | Tensor, mode: Mode, chunk: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the exact roots and those of the first line, after checking what they are made of."""
    for value, name in ((weight, "weight"), (direction, "direction"), (activations, "activations")):
        dimensions = 2 if name == "activations" else 1
        of_kind(value, Tensor, name, f"a tensor with {dimensions} dimension(s)")
        if value.ndim != dimensions:
            raise InputError(
                f"{name} has shape {tuple(value.shape)}; expected "
                f"{'(images, width)' if dimensions == 2 else '(width,)'}"
            )
    # Not checked, a slip would be taken for the other mode.
    check_mode(mode)
    height = _per_image(bias, activations, "bias") - _per_image(target, activations, "target")
    return solve(weight.double()[None], direction, activations, height, mode, chunk)


def _per_image(value: float | Tensor, activations: Tensor, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{name} {value!r:.80} is neither one number nor one for each image"
        ) from None
    if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != len(activations)):
        raise InputError(
            f"{name} of shape {tuple(tensor.shape)} is neither one number nor one for each of the "
            f"{len(activations)} images"
        )
    return tensor.expand(len(activations)).contiguous()
