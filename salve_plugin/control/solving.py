"""First roots of many images' logits on one direction, and the checks of what they are made of."""

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.knots import Knots
from salve_plugin.control.operators import Mode
from salve_plugin.errors import InputError
from salve_plugin.integers import whole

CHUNK = 2048
"""Images solved at once."""


def solve(
    weight: Float64[Tensor, "one width"],
    direction: Tensor,
    activations: Tensor,
    height: Tensor,
    mode: Mode,
    chunk: int | None,
    knots: Knots | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return where height + $\sum_j u_j m_j(\alpha)$ is 0: exactly, and on its first line."""
    _check_shapes(weight, direction, activations, chunk)
    # A latent that reaches nothing moves no logit: below the target now, or never.
    if not bool(direction.any()):
        start = height + (activations.double() * weight).sum(1)
        never = torch.where(start <= 0, 0.0, torch.inf).double()
        return never, never.clone()
    knots = knots or Knots.of(direction)
    exact, linear = torch.empty_like(height), torch.empty_like(height)
    size = chunk or CHUNK
    for first in range(0, len(activations), size):
        part = slice(first, first + size)
        sums = knots.contributions(activations[part], weight[0])
        start = sums.total() + height[part]
        # One sum tells of all: a weight, bias or activation that is not finite makes its sum so,
        # and times zero it is NaN.
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


def present(labels: Tensor) -> list[int]:
    """Return the labels that occur, ascending."""
    return sorted(set(labels.tolist()))


def _check_shapes(
    weight: Tensor, direction: Tensor, activations: Tensor, chunk: int | None
) -> None:
    widths = {weight.shape[1], len(direction), activations.shape[-1]}
    if len(widths) > 1 or activations.ndim != 2:
        raise InputError(
            f"widths do not fit: weight {weight.shape[1]}, direction {len(direction)}, activations "
            f"{tuple(activations.shape)}"
        )
    if chunk is not None:
        whole(chunk, "chunk", least=1)
    if not bool(direction.isfinite().all()):
        raise InputError("the direction is not finite")


def two_sided(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """Return one logit (..., images, 1) as those of two classes, below the threshold and above it.

    They are 0 and z - threshold, whose softmax is the sigmoid of z - threshold. Several logits are
    returned as they are.
    """
    if logits.ndim < 2 or logits.shape[-1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits - threshold], -1)


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
