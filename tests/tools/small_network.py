"""A small network with every kind of place that edits write to, and random edits of it."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from salve_plugin import Gate, HookedModel, LowRankMap, LowRankUpdate, Site, edit_at
from salve_plugin.control import ledger
from salve_plugin.control.edit import Edit
from salve_plugin.control.matching import base_of
from salve_plugin.control.targets import Target

WIDTH = 6


class LayerScale(nn.Module):
    """Scales every feature, as timm's module of the same name does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Small(nn.Module):
    """Convolutions with a BatchNorm, an attention-like block with LayerScale, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, bias=False)
        self.norm0 = nn.BatchNorm2d(WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.point = nn.Conv2d(WIDTH, WIDTH, 1)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.scale = LayerScale(WIDTH)
        self.head = nn.Linear(WIDTH, 4)
        self.twin = nn.Linear(WIDTH, 4)
        self.twin.weight = self.head.weight

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.conv(self.norm0(self.stem(images))))
        x = torch.tanh(self.point(x)).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.scale(self.proj(value * torch.sigmoid(query * key)))
        x = x.mean(1)
        return self.head(x) + self.twin(x)  # type: ignore[no-any-return] # nn.Module returns Any


def small(dtype: torch.dtype = torch.float32) -> HookedModel:
    """Return a fresh hooked `Small`, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small()
        nn.init.uniform_(model.norm0.weight, 0.5, 1.5)
        nn.init.normal_(model.norm0.bias)
        assert model.norm0.running_mean is not None
        assert model.norm0.running_var is not None
        nn.init.normal_(model.norm0.running_mean)
        nn.init.uniform_(model.norm0.running_var, 0.5, 1.5)
    tokens = {"layout": "tokens", "width": WIDTH, "grid": (3, 3)}
    sites = [
        Site(
            "stem", "norm0", "out", "nchw", WIDTH, None or 0, None, ("conv",), ("stem",), ("norm0",)
        ),
        Site("conv", "conv", "out", "nchw", WIDTH, writers=("conv",)),
        Site("point", "point", "in", "nchw", WIDTH, readers=("point",)),
        Site("norm", "norm", "out", readers=("qkv",), **tokens),  # type: ignore[arg-type] # a table
        Site("z", "proj", "in", readers=("proj",), **tokens),  # type: ignore[arg-type] # a table
        Site("attn_out", "scale", "out", writers=("proj",), affine=("scale",), **tokens),  # type: ignore[arg-type] # a table
        Site("sum", "head", "in", "pooled", WIDTH, readers=("head", "twin")),
    ]
    return HookedModel(
        model.eval().to(dtype),
        sites,
        attribution_site=None,
        description={"architecture": "Small", "input_size": [3, 5, 5]},
        heads={},
    )


def random_edits(hooked: HookedModel, chance: random.Random, count: int) -> list[Edit]:
    """Return different edits of all forms, sides and views."""
    makers = list(MAKERS)
    return [chance.choice(makers)(hooked, chance) for _ in range(count)]


def _draw(chance: random.Random, *shape: int) -> Tensor:
    kind = chance.choice([torch.float32, torch.float64])
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    return torch.randn(shape, generator=generator, dtype=kind)


def _gate(chance: random.Random) -> Gate:
    atoms = nn.functional.normalize(_draw(chance, chance.randint(1, 2), WIDTH), dim=1)
    return Gate(atoms, chance.uniform(0, 4), chance.choice(["suppress", "enhance"]))


def _map(chance: random.Random, *, origin: bool = False) -> LowRankMap:
    rank = chance.randint(1, 2)
    offset = torch.zeros(rank) if origin else _draw(chance, rank)
    write, read = 0.3 * _draw(chance, WIDTH, rank), 0.3 * _draw(chance, WIDTH, rank)
    return LowRankMap(write, read, offset, chance.uniform(-0.5, 1.5))


def _update(chance: random.Random, outputs: int, inputs: int) -> LowRankUpdate:
    rank = chance.randint(0, 2)
    shift = _draw(chance, outputs) if rank == 0 or chance.random() < 0.5 else None
    return LowRankUpdate(
        0.2 * _draw(chance, outputs, rank), 0.2 * _draw(chance, inputs, rank), shift
    )


def _rows(chance: random.Random, outputs: int) -> list[int] | None:
    return chance.choice([None, sorted(chance.sample(range(outputs), chance.randint(1, outputs)))])


def _slice(hooked: HookedModel, chance: random.Random) -> Edit:
    """Return an edit of the values only, a third of a fused weight."""
    part = chance.randrange(3)
    span = (part * WIDTH, (part + 1) * WIDTH)
    target = Target("qkv.weight", "qkv.bias", "reader", "linear", span)
    return Edit(
        hooked.site("norm"), _map(chance), (target,), base_of(hooked, list(target.paths)),
        chance.choice([None, (0, 2)]),
    )  # fmt: skip


MAKERS: list[Callable[[HookedModel, random.Random], Edit]] = [
    lambda h, c: edit_at(h, "sum", _gate(c), rows=_rows(c, 4)),
    lambda h, c: edit_at(h, "point", _gate(c), rows=_rows(c, WIDTH)),
    lambda h, c: edit_at(h, "stem", _gate(c)),  # a 3x3 convolution reads it
    lambda h, c: edit_at(h, "attn_out", _gate(c)),  # written through LayerScale
    lambda h, c: edit_at(h, "sum", _map(c), rows=_rows(c, 4)),
    lambda h, c: edit_at(h, "norm", _map(c)),
    lambda h, c: edit_at(h, "z", _map(c), rows=_rows(c, WIDTH)),
    lambda h, c: edit_at(h, "stem", _map(c, origin=True)),
    lambda h, c: edit_at(
        h, "stem", _map(c), role="writer"
    ),  # through BatchNorm, which has the bias
    lambda h, c: edit_at(h, "conv", _map(c)),
    lambda h, c: edit_at(h, "attn_out", _map(c)),
    lambda h, c: edit_at(h, "z", _update(c, WIDTH, WIDTH)),
    lambda h, c: edit_at(h, "point", _update(c, 2, WIDTH), rows=[1, 4]),
    lambda h, c: edit_at(h, "conv", _update(c, WIDTH, 9 * WIDTH), role="writer"),
    _slice,
]


def ledgers(model: nn.Module) -> list[object]:
    """Return every ledger that lies at a module, one a parameter and module."""
    kept = [vars(m)[ledger.ATTRIBUTE] for m in model.modules() if ledger.ATTRIBUTE in vars(m)]
    return [each for names in kept for each in names.values()]


def bits(model: nn.Module) -> dict[str, bytes]:
    """Return every tensor of a model as bytes."""
    state: dict[str, Any] = model.state_dict()
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in state.items()
    }
