"""A tiny network with a classifier to set at will, and the images of its classes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from salve_plugin import HookedModel


@pytest.fixture(scope="session")
def with_head(make_tiny: Callable[[], HookedModel]) -> Callable[..., HookedModel]:
    """Makes the tiny network (6 features) with a classifier: (weight (classes, 6), bias=None)."""

    def made(weight: Tensor, bias: Tensor | None = None) -> HookedModel:
        hooked = make_tiny()
        head = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, dtype=weight.dtype)
        with torch.no_grad():
            head.weight.copy_(weight)
            if bias is not None:
                head.bias.copy_(bias)
        hooked.model.head = head
        return hooked

    return made
