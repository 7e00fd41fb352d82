"""How fast a classifier takes back what an edit took: full-batch gradient descent on the head."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.assessment.batches import Head


def relearned(
    head: Head,
    x: Float64[Tensor, "images width"],
    labels: Int64[Tensor, " images"],
    held_out: tuple[Float64[Tensor, "held width"], Int64[Tensor, " held"]],
    target: int,
    steps: Sequence[int],
) -> tuple[float, ...]:
    """Return the target's accuracy after so many steps of fine-tuning the classifier alone.

    Cross-entropy over all images at once, inputs centred (which only moves the bias), and a step of
    1/L, L the bound of the curvature: half the largest eigenvalue of the inputs' second moment. So
    nothing is tuned and nothing is drawn.

    Args:
        head: where to start.
        x: its inputs for the images to learn from.
        labels: of them.
        held_out: inputs and labels of other images, of which the accuracy is.
        target: the class.
        steps: numbers of steps, ascending.
    """
    centre = x.mean(0)
    inputs = torch.cat([x - centre, x.new_ones(len(x), 1)], 1)
    top = torch.linalg.eigvalsh(_smaller_gram(inputs) / len(inputs))[-1]
    # The curvature of cross-entropy in the logits, diag(p) - p pᵀ, is at most 1/2, so that L is
    # half of the largest eigenvalue and a step of 1/L never raises the loss.
    rate = 2 / float(top)
    # The same logits, of centred inputs.
    weight = torch.cat([head.weight, (head.bias + head.weight @ centre)[:, None]], 1)
    mine = held_out[1] == target
    tests = torch.cat([held_out[0][mine] - centre, x.new_ones(int(mine.sum()), 1)], 1)
    goal = torch.nn.functional.one_hot(labels, len(weight)).double()
    accuracies = []
    for step in range(max(steps) + 1):
        if step in steps:
            predicted = (tests @ weight.T).argmax(1)
            accuracies.append(float((predicted == target).double().mean()))
        error = (inputs @ weight.T).softmax(1) - goal
        weight = weight - rate * (error.T @ inputs) / len(inputs)
    return tuple(accuracies)


def _smaller_gram(x: Tensor) -> Tensor:
    """Return X X^T or X^T X, whichever is smaller: they have the same largest eigenvalue."""
    return x @ x.T if len(x) < x.shape[1] else x.T @ x
