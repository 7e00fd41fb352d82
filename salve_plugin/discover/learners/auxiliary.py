"""AuxK: dead latents learn to predict what the living ones leave over."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.encoder import encode_at, pre_activations
from salve_plugin.discover.learners.base import Step, Tensors
from salve_plugin.discover.selection import largest
from salve_plugin.discover.sparse import Support, decode_at

LEAK = 0.1
"""What the negative pre-activation of a dead latent counts for."""


def dead_loss(
    t: Tensors,
    step: Step,
    pre: Float[Tensor, "rows latents"] | None,
    error: Float[Tensor, "rows width"],
    k_aux: int,
    among: Bool[Tensor, " latents"] | None = None,
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
        t: the tensors in training.
        step: the batch; its `dead` latents take part.
        pre: pre-activations, without gradient; None if those of the dead are still to be computed.
        error: of the reconstruction.
        k_aux: latents of each row that take part, at most the number of dead ones.
        among: other latents that take part instead of the dead ones.
        signed: take the largest |pre-activations|, of either sign and in full.

    Returns:
        The loss; 0 if there is no dead latent or no error.
    """
    latents = (step.dead if among is None else among).nonzero().flatten()
    target = error.detach()
    size = step.team.mean(target.square().sum(-1).mean())
    if len(latents) == 0 or not size > 0:
        return torch.zeros((), dtype=target.dtype, device=target.device)
    weight, bias = t["encoder_weight"], t["encoder_bias"]
    if pre is None:
        theirs = pre_activations(step.x, weight[latents], bias[latents], step.scratch)
    else:
        theirs = pre[:, latents]
    scores = theirs.abs() if signed else theirs
    chosen = largest(scores, min(k_aux, len(latents)))[1]
    support = Support.of_indices(latents[chosen], len(weight), theirs.gather(1, chosen))
    values = encode_at(step.x, weight, bias, support, None)
    values = values if signed else functional.leaky_relu(values, LEAK)
    missed = target - decode_at(values, support, t["atoms"])
    return missed.square().sum(-1).mean() / size
