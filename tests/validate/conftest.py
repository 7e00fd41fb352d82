"""Small dictionaries with known weights, made without training."""

from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """An affine autoencoder's encoder: z = (x - b_d) E^T + b_e, and its ReLU as the code."""

    def __init__(self, encoder: Tensor, decoder_bias: Tensor, encoder_bias: Tensor) -> None:
        super().__init__()
        for name, tensor in {"E": encoder, "b_d": decoder_bias, "b_e": encoder_bias}.items():
            self.register_buffer(name, tensor)
        self.E: Tensor
        self.b_d: Tensor
        self.b_e: Tensor

    @property
    def n_latents(self) -> int:
        return len(self.E)

    @property
    def width(self) -> int:
        return self.E.shape[1]

    def pre_activation(self, x: Tensor) -> Tensor:
        return (x - self.b_d) @ self.E.T + self.b_e

    def encode(self, x: Tensor) -> Tensor:
        return self.pre_activation(x).relu()


class MakeAffine(Protocol):
    def __call__(
        self, width: int, n_latents: int = 6, dtype: torch.dtype = torch.float32
    ) -> Affine: ...


@pytest.fixture
def make_affine() -> MakeAffine:
    """Make a dictionary with normal weights, the same ones every time."""

    def make(width: int, n_latents: int = 6, dtype: torch.dtype = torch.float32) -> Affine:
        generator = torch.Generator().manual_seed(0)
        shapes = ((n_latents, width), (width,), (n_latents,))
        return Affine(*(torch.randn(s, generator=generator).to(dtype) for s in shapes))

    return make


@pytest.fixture
def make_encoder() -> Callable[[Tensor, Tensor], Affine]:
    """Make the dictionary whose latents are W x + b."""

    def make(weight: Tensor, bias: Tensor) -> Affine:
        return Affine(weight.detach(), torch.zeros_like(weight[0]), bias.detach())

    return make
