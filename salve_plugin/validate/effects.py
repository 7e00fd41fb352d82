"""What latents do to a class at each position: codes, effects, and those that contribute most."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.latents import reference_of


def most_contributing(
    contributions: Float[Tensor, "batch latents"], top: int | None
) -> Bool[Tensor, "batch latents"]:
    """Return which latents a target takes: of those that speak for the class, the `top` first."""
    if top is None:
        return torch.ones_like(contributions, dtype=torch.bool)
    most, chosen = contributions.topk(min(top, contributions.shape[1]), dim=1)
    # Of latents that are off, or speak against the class, no logit is made, however few are left.
    return torch.zeros_like(contributions, dtype=torch.bool).scatter(1, chosen, most > 0)


def effects_of(
    dictionary: Any,
    features: Float[Tensor, "batch *positions width"],
    gradient: Float[Tensor, "batch *positions width"],
) -> tuple[Float[Tensor, "batch rows latents"], Float[Tensor, "batch rows latents"]]:
    """Return codes z_l(p) and what they do to the class, e_l(p), positions flattened.

    Raises:
        InputError: if the dictionary has no decoder.
    """
    if not callable(getattr(dictionary, "decode", None)):
        raise InputError(
            f"{type(dictionary).__name__} has no method 'decode', from codes (..., latents) to "
            "rows (..., width), so what its latents do to a class is unknown; give it one, or "
            "weight the latents yourself: target={latent: weight}"
        )
    rows = features.detach().reshape(len(features), -1, features.shape[-1])
    pulled = gradient.reshape(rows.shape)
    rows = rows.to(reference_of(dictionary, rows))
    with torch.autocast(rows.device.type, enabled=False), torch.no_grad():
        codes: Tensor = dictionary.encode(rows)
    # A leaf: an effect is that of the code, not of what the encoder makes it of.
    codes = codes.detach().requires_grad_()
    with torch.autocast(rows.device.type, enabled=False), torch.enable_grad():
        decoded = dictionary.decode(codes)
        # A decoder need not be linear; for z V + b_d this is g V^T.
        (effects,) = torch.autograd.grad(decoded, codes, pulled.to(decoded))
    return codes.detach(), effects
