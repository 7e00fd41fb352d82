"""Edits of several weights of one network."""

import torch
from small_artifacts import random_dictionary
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.share.artifact import EditArtifact


def atoms_of(width: int, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(width)
    return nn.functional.normalize(torch.randn(count, width, generator=draw), dim=1)


def several(hooked: salve.HookedModel) -> dict[str, EditArtifact]:
    """Return edits of the head and, where there are any, of two hidden weights."""
    atoms = random_dictionary(hooked)
    edits = {
        "all-rows": salve.suppress(hooked, atoms, latent=0, strength=2.5),
        "more": salve.enhance(hooked, atoms, latent=1, strength=1.25, rows=[3, 5]),
        "less": salve.suppress(hooked, atoms, latent=2, strength=6.0, rows=[5, 7]),
    }
    hidden = [site for site in hooked.sites.values() if site.readers][:2]
    for site in hidden:
        if site.name == "unembed.hook_in":
            continue
        for latent, rows in enumerate([(0, 1, 9), None]):
            atom = atoms_of(site.width, 2)[latent]
            name = f"{site.name.lower().replace('.', '-')}-{latent}"
            source = salve.Provenance("latents", (latent,))
            gate = salve.Gate(atom[None], 2.0)
            edits[name] = salve.edit_at(hooked, site, gate, rows=rows, provenance=source)
    return {name: EditArtifact.of(hooked, edit) for name, edit in edits.items()}
