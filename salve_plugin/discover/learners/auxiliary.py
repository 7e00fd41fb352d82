"""AuxK: dead latents learn to predict what the living ones leave over."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Step, Tensors

LEAK = 0.1
"""What the negative pre-activation of a dead latent counts for."""

LATENT_SHARE, LEAST_LATENTS = 1 / 16, 64
"""Dead latents that learn in one step, relative to all latents; and how many may in any case."""

PRODUCT_SHARE, LEAST_PRODUCTS = 1 / 256, 2048
"""Pre-activations that their loss computes, relative to those of all rows and latents; and how many
it may in any case. Few dead latents learn from the whole batch, many from some of its rows."""


@dataclass(frozen=True, eq=False)
class Dead:
    """The tensors of the dead latents alone; what they learn is added to the whole ones' gradients.

    Attributes:
        latents: which they are (dead,).
        weight: of their encoder (dead, width).
        bias: of their encoder (dead,).
        atoms: theirs (dead, width).
    """

    latents: Int[Tensor, " dead"]
    weight: Float[Tensor, "dead width"]
    bias: Float[Tensor, " dead"]
    atoms: Float[Tensor, "dead width"]


def apart(
    t: Tensors, dead: Bool[Tensor, " latents"], aux: float, random: torch.Generator
) -> tuple[Tensors, Dead | None]:
    """Return the tensors for the loss of all latents, and those for the loss of the dead.

    Where many are dead, those that learn in this step are drawn from them: a loss of all of them
    would take longer than the rest of the step.

    Two losses that use the same tensor have two gradients of its size to be added up. Here the
    second is as small as the dead latents are few, and the first takes it in.

    Args:
        t: the tensors in training.
        dead: which latents are.
        aux: weight of the loss of the dead; with 0 nobody is set apart.
        random: draws them.

    Returns:
        The tensors, to be used instead of `t`, and the dead; None if there are none.
    """
    if not (aux and bool(dead.any())):
        return t, None
    latents = dead.nonzero().flatten()
    most = max(LEAST_LATENTS, int(LATENT_SHARE * len(dead)))
    if len(latents) > most:
        # The same in every process, since all seed alike: their gradients are averaged latent by
        # latent.
        drawn = torch.randperm(len(latents), generator=random)[:most].to(latents.device)
        latents = latents[drawn.sort().values]  # in order, as memory is read fastest
    names = ("encoder_weight", "encoder_bias", "atoms")
    forked = {name: _Fork.apply(t[name], latents) for name in names}
    whole = {name: pair[0] for name, pair in forked.items()}
    weight, bias, atoms = (forked[name][1] for name in names)
    return {**t, **whole}, Dead(latents, weight, bias, atoms)


def dead_loss(
    dead: Dead,
    step: Step,
    error: Float[Tensor, "rows width"],
    k_aux: int | None = None,
    *,
    signed: bool = False,
) -> Float[Tensor, ""]:
    """Return how badly the dead latents predict the error, relative to predicting zero.

    With the error r = x − x̂ held fixed and z' the pre-activations of the dead latents of a row,
    this is the mean of ‖r − z' V‖² divided by that of ‖r‖² (Gao et al. 2024, appendix A.2), where
    many are dead over the first rows of the batch only, whose order is random. Unlike there, what
    is negative counts for a tenth instead of nothing: a latent that is negative on all data would
    get no gradient and stay dead for ever. If it counted in full, others would learn to cancel it,
    and it could do its work without ever being active.

    Args:
        dead: the dead latents, or others that take part in their place.
        step: the batch.
        error: of the reconstruction.
        k_aux: latents of each row that take part, those with the largest pre-activations; by
            default all, since they are a sample already where they are many.
        signed: take pre-activations of either sign in full, those of the largest size.

    Returns:
        The loss; 0 if there is no error.
    """
    target = error.detach()
    # The norm of all, which takes no temporary of the batch's size as its squares would. Over all
    # processes: with a divisor of its own in each, the mean of their gradients would not be the
    # gradient of the whole batch.
    size = step.team.mean(torch.linalg.vector_norm(target).square() / len(target))
    if not size > 0:
        return torch.zeros((), dtype=target.dtype, device=target.device)
    # A sample's gradient is right on average, and the loss of all rows cost as much as the step.
    products = max(LEAST_PRODUCTS, int(PRODUCT_SHARE * len(target) * len(step.dead)))
    n_rows = max(1, products // len(dead.latents))
    # So few that dense products are faster than sparse ones.
    pre = functional.linear(step.x[:n_rows], dead.weight, dead.bias)
    values = pre if signed else functional.leaky_relu(pre, LEAK)
    if k_aux is not None and k_aux < len(dead.latents):
        scores = pre.detach().abs() if signed else pre.detach()
        least = scores.topk(k_aux, dim=1, sorted=False).values.amin(1, keepdim=True)
        values = values.where(scores >= least, torch.zeros_like(values))
    missed = target[:n_rows] - values @ dead.atoms
    return missed.square().sum(-1).mean() / size


class _Fork(torch.autograd.Function):
    """A tensor, and some of its rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(chosen)
        return tensor.view_as(tensor), tensor.index_select(0, chosen)

    @staticmethod
    def backward(ctx: Any, whole: Tensor, some: Tensor) -> tuple[Tensor, None]:
        (chosen,) = ctx.saved_tensors
        # In place, because the products that make the first gradient hand it over to nobody else,
        # and a copy would cost as much as what this function saves.
        return whole.index_add_(0, chosen, some), None
