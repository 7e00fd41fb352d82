"""Dead latents start anew from rows that are reconstructed badly."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from salve_plugin.discover.learners.base import COMMON, Learner, Tensors

ENCODER_SHARE = 0.2
"""Norm of a revived latent's encoder row relative to the living ones': it starts quietly."""


def revive(
    rule: Learner,
    t: Tensors,
    optimizer: torch.optim.Optimizer,
    rows: Float[Tensor, "rows width"],
    dead: Bool[Tensor, " latents"],
    random: torch.Generator,
) -> None:
    """Give dead latents the directions of badly reconstructed rows, in place.

    Rows are drawn with probability in proportion to their error. A dead latent's atom becomes the
    row's direction, its encoder the same direction at a fifth of the living encoders' mean norm,
    its bias zero, and Adam forgets it (the resampling of Bricken et al. 2023). Atoms that are not
    trained stay, and the encoder starts anew along them. What else the learner trains for each
    latent starts at zero: a bias that silenced a latent would silence it again.

    Args:
        rule: the learner.
        t: its tensors.
        optimizer: whose moments of those latents are zeroed.
        rows: a batch, scaled.
        dead: which latents.
        random: draws the rows.
    """
    latents = dead.nonzero().flatten()
    if len(latents) == 0:  # coding and decoding the batch cost a step's time
        return
    error = torch.linalg.vector_norm(rows - rule.decode(t, rule.encode(t, rows)), dim=1)
    error = error * rows.any(1)  # a row at the mean has no direction
    if not error.sum() > 0:
        return
    if t["atoms"].requires_grad:
        # With replacement, because there may be more dead latents than rows with an error. Two that
        # draw the same row are twins with equal gradients from then on: one of them is wasted.
        drawn = torch.multinomial(error, len(latents), replacement=True, generator=random)
        t["atoms"][latents] = torch.nn.functional.normalize(rows[drawn], dim=1)
    # As loud as the living, it would at once be active on rows that they explain already.
    living = t["encoder_weight"][~dead]
    size = torch.linalg.vector_norm(living, dim=1).mean() if len(living) else rows.new_ones(())
    t["encoder_weight"][latents] = ENCODER_SHARE * size * t["atoms"][latents]
    t["encoder_bias"][latents] = 0
    own = [name for name in t if name not in COMMON and t[name].shape == dead.shape]
    for name in own:
        t[name][latents] = 0
    for name in ("atoms", "encoder_weight", "encoder_bias", *own):
        # Adam's moments are of the old direction, along which they would drag the new one. Its
        # count of steps is one number for the whole tensor, has no such shape, and stays.
        for moment in optimizer.state.get(t[name], {}).values():
            if moment.shape == t[name].shape:
                moment[latents] = 0
