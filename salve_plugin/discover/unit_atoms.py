"""Which tensors make a dictionary: those that it must have, with atoms of unit norm."""

from collections.abc import Mapping

import torch
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.site import Site

NORM_TOLERANCE = 1e-4


def check_tensors(tensors: Mapping[str, Tensor], names: list[str], site: Site) -> None:
    """Raise InputError unless the tensors make a dictionary for the site."""
    if sorted(tensors) != names:
        raise InputError(f"this dictionary has tensors {names}, got {sorted(tensors)}")
    atoms = tensors["atoms"]
    if atoms.ndim != 2 or len(atoms) == 0 or atoms.shape[1] != site.width:
        raise InputError(
            f"atoms have shape {tuple(atoms.shape)}; expected (latents, {site.width}) for site "
            f"'{site.name}'"
        )
    latents, width = atoms.shape
    shapes = {
        "encoder_weight": (latents, width),
        "encoder_bias": (latents,),
        "decoder_bias": (width,),
        "atoms": (latents, width),
    }
    for name, tensor in tensors.items():
        shape = shapes.get(name, tuple(tensor.shape))  # the learner's own are tried out at the end
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise InputError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected floats of "
                f"shape {shape}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{name} holds NaN or infinite values")
    worst = (torch.linalg.vector_norm(atoms.double(), dim=1) - 1).abs()
    if worst.max() > NORM_TOLERANCE:
        latent = int(worst.argmax())
        raise InputError(
            f"atom {latent} has norm {float(atoms[latent].double().norm()):.6g}; atoms must have "
            "norm 1, else the strength of an edit has no unit"
        )
