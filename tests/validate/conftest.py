"""Small dictionaries, models and recordings with known contents, made without training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site


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


class Pooled(nn.Module):
    """A model whose head reads its input: what is recorded is what goes in."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(x)
        return result


class Tokens(Pooled):
    """The same over tokens, of which the first is a class token; they are averaged."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        self.body = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.body(x).mean(1))
        return result


@dataclass(frozen=True, eq=False)
class Recorded:
    """Rows with labels, the toy model that reads them, and their recording."""

    hooked: HookedModel
    loader: list[tuple[Tensor, Tensor]]
    acts: Activations


class MakeRecorded(Protocol):
    def __call__(self, x: Tensor, labels: Tensor) -> Recorded: ...


@pytest.fixture
def make_recorded(tmp_path: Path) -> MakeRecorded:
    """Record rows (images, width), or tokens (images, 1 + tokens, width), of a toy model.

    Its head has a row for each class: the mean of the class's rows, minus the mean of all.
    """

    def make(x: Tensor, labels: Tensor) -> Recorded:
        pooled, width, classes = x.ndim == 2, x.shape[-1], int(labels.max()) + 1
        model = (Pooled if pooled else Tokens)(width, classes)
        rows = x if pooled else x.mean(1)
        with torch.no_grad():
            for label in range(classes):
                model.fc.weight[label] = rows[labels == label].mean(0) - rows.mean(0)
            model.fc.bias.copy_(-model.fc.weight @ rows.mean(0))
        head = Site("unembed.hook_in", "fc", "in", "pooled", width, readers=("fc",))
        body = Site("body.hook_out", "body", "out", "tokens", width, prefix_tokens=1)
        sites = [head] if pooled else [body, head]
        hooked = HookedModel(model, sites, attribution_site=None, description={"name": "toy"})
        loader = list(zip(x.split(50), labels.split(50), strict=True))  # type: ignore[no-untyped-call] # torch leaves it untyped
        folder = tmp_path / f"recording{len(list(tmp_path.iterdir()))}"
        acts = record(hooked, loader, sites[0].name, folder=folder, progress=False)
        return Recorded(hooked, loader, acts)

    return make


class Planted(NamedTuple):
    x: Tensor
    atoms: Tensor
    codes: Tensor
    labels: Tensor


@pytest.fixture
def make_planted() -> Callable[..., Planted]:
    """Mix rows of a few unit atoms, one of which belongs to the row's class, plus an offset."""

    def make(rows: int = 600, width: int = 12, latents: int = 12, classes: int = 3) -> Planted:
        random = torch.Generator().manual_seed(0)
        atoms = functional.normalize(torch.randn(latents, width, generator=random), dim=1)
        labels = torch.arange(rows) % classes
        sizes = 1 + torch.rand(rows, latents, generator=random)
        on = torch.rand(rows, latents, generator=random) < 2 / latents
        on[:, :classes] = functional.one_hot(labels, classes).bool()
        codes = sizes * on
        return Planted(codes @ atoms + 0.5, atoms, codes, labels)

    return make
