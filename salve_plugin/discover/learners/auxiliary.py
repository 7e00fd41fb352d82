"""AuxK: dead latents learn to predict what the living ones leave over."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_at, pre_activations
from salve_plugin.discover.kernels.selection import largest
from salve_plugin.discover.kernels.sparse import Support, decode_at
from salve_plugin.discover.learners.base import Step, Tensors

LEAK = 0.1
"""What the negative pre-activation of a dead latent counts for."""


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


def apart(t: Tensors, dead: Bool[Tensor, " latents"], aux: float) -> tuple[Tensors, Dead | None]:
    """Return the tensors for the loss of all latents, and those for the loss of the dead.

    Two losses that use the same tensor have two gradients of its size to be added up. Here the
    second is as small as the dead latents are few, and the first takes it in.

    Args:
        t: the tensors in training.
        dead: which latents are.
        aux: weight of the loss of the dead; with 0 nobody is set apart.

    Returns:
        The tensors, to be used instead of `t`, and the dead; None if there are none.
    """
    if not (aux and bool(dead.any())):
        return t, None
    latents = dead.nonzero().flatten()
    names = ("encoder_weight", "encoder_bias", "atoms")
    forked = {name: _Fork.apply(t[name], latents) for name in names}
    whole = {name: pair[0] for name, pair in forked.items()}
    weight, bias, atoms = (forked[name][1] for name in names)
    return {**t, **whole}, Dead(latents, weight, bias, atoms)


def dead_loss(
    dead: Dead,
    step: Step,
    pre: Float[Tensor, "rows latents"] | None,
    error: Float[Tensor, "rows width"],
    k_aux: int,
    *,
    signed: bool = False,
) -> Float[Tensor, ""]:
    """Return how badly the dead latents predict the error, relative to predicting zero.

    With the error r = x − x̂ held fixed and z' the `k_aux` largest pre-activations of the dead
    latents of a row, this is the batch mean of ‖r − z' V‖² divided by that of ‖r‖² (Gao et al.
    2024, appendix A.2). Unlike there, what is negative counts for a tenth instead of nothing: a
    latent that is negative on all data would get no gradient and stay dead for ever. If it counted
    in full, others would learn to cancel it, and it could do its work without ever being active.

    Args:
        dead: the dead latents, or others that take part in their place.
        step: the batch.
        pre: pre-activations, without gradient; None if those of the dead are still to be computed.
        error: of the reconstruction.
        k_aux: latents of each row that take part, at most the number of dead ones.
        signed: take the largest |pre-activations|, of either sign and in full.

    Returns:
        The loss; 0 if there is no error.
    """
    target = error.detach()
    size = step.team.mean(target.square().sum(-1).mean())
    if not size > 0:
        return torch.zeros((), dtype=target.dtype, device=target.device)
    if pre is None:
        theirs = pre_activations(step.x, dead.weight, dead.bias, step.scratch, rough=True)
    else:
        theirs = pre.index_select(1, dead.latents)
    scores = theirs.abs() if signed else theirs
    chosen = largest(scores, min(k_aux, len(dead.latents)))[1]
    known = theirs.gather(1, chosen).to(target.dtype)
    support = Support.of_indices(chosen, len(dead.latents), known, step.scratch)
    values = encode_at(step.x, dead.weight, dead.bias, support, None)
    values = values if signed else functional.leaky_relu(values, LEAK)
    missed = target - decode_at(values, support, dead.atoms)
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
