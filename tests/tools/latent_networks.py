"""Tiny timm networks of every kind of pooling, and dictionaries of their sites, untrained."""

from typing import Any

import timm
import torch

import salve_plugin as salve
from salve_plugin.discover import learners
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.site import Site

NETWORKS: dict[str, dict[str, Any]] = {
    "test_resnet": {},  # an average of the map
    "test_convnext": {},  # a norm after the average
    "test_vit": {"img_size": 32},  # a class token
    "test_vit2": {"img_size": 32},  # an average and a norm
    "test_vit3": {"img_size": 32},  # attention
    "swin_tiny_patch4_window7_224": {  # NHWC
        "img_size": 32, "patch_size": 2, "window_size": 4, "depths": (1, 1), "num_heads": (1, 2),
        "embed_dim": 16,
    },
}  # fmt: skip


def attached(name: str) -> salve.HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4, **NETWORKS[name]).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return salve.attach(model.double())


def dictionary_at(site: Site, n_latents: int, learner: str = "topk", **options: Any) -> Dictionary:
    random = torch.Generator().manual_seed(0)
    atoms = torch.randn(n_latents, site.width, generator=random, dtype=torch.float64)
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    tensors = {
        "atoms": atoms,
        "encoder_weight": atoms + 0.1 * torch.randn(atoms.shape, generator=random),
        "encoder_bias": 0.1 * torch.randn(n_latents, generator=random).double(),
        "decoder_bias": 0.1 * torch.randn(site.width, generator=random).double(),
    }
    return Dictionary(tensors, learners.create(learner, options), site)
