"""What tests of writers share: seeded numbers, and a layer's weight after an edit."""

import torch
from torch import Tensor

from salve_plugin import Edit, HookedModel


def draw(seed: int, *shape: int) -> Tensor:
    """Return seeded normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight_after(hooked: HookedModel, edit: Edit, path: str = "head") -> Tensor:
    """Return the weight (outputs, inputs) of a layer in a copy of the model with the edit."""
    layer = edit.edited(hooked.model).get_submodule(path)
    return layer.get_parameter("weight").detach().double().flatten(1)
