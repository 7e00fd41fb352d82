"""Edits of the networks trained on digits, and what is not the base with exactly one of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from salve_plugin import Gate, LowRankMap, Site, attach, edit_at
from salve_plugin.control.edit import Edit
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[1] / "fixtures"
State = dict[str, Tensor]


def network(kind: str) -> nn.Module:
    return digits.load(kind, FIXTURES / f"digits_{kind}.safetensors")  # type: ignore[arg-type] # a name


def atom(width: int, seed: int = 0) -> Tensor:
    direction: Tensor = torch.randn(width, 1, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(direction, dim=0)


def head_edit(model: nn.Module, rows: list[int] | None = None, strength: float = 2.0) -> Edit:
    hooked = attach(model)
    width = hooked.site("unembed.hook_in").width
    return edit_at(hooked, "unembed.hook_in", Gate(atom(width).T, strength), rows=rows)


def hidden_edit(model: nn.Module, site: str | Site = "blocks.1.mlp.hook_post") -> Edit:
    """Return an edit with an offset, which so changes biases, too."""
    hooked = attach(model)
    direction = atom((hooked.site(site) if isinstance(site, str) else site).width)
    change = LowRankMap(direction, direction, torch.ones(1))
    return edit_at(hooked, site, change)


def state(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def written(tensors: State | nn.Module, path: Path) -> Path:
    own = state(tensors) if isinstance(tensors, nn.Module) else tensors
    safetensors.torch.save_file(own, path, metadata={"made": path.name})
    return path


def one_more(name: str, index: tuple[int, ...]) -> Callable[[State], None]:
    def change(tensors: State) -> None:
        tensors[name][index] += 1

    return change


WRONG: Mapping[str, tuple[Callable[[State], object], str]] = {
    "other layer": (
        one_more("conv1.weight", (0, 0, 0, 0)),
        "conv1.weight: changed otherwise 1 row",
    ),
    "bias": (one_more("fc.bias", (2,)), "fc.bias: changed otherwise 1 row"),
    "other row": (
        one_more("fc.weight", (5, 0)),
        r"fc.weight: .* 1 rows differ \(5\)",
    ),
    "edited row": (
        one_more("fc.weight", (1, 0)),
        r"fc.weight: .* 1 rows differ \(1\)",
    ),
    "a buffer": (one_more("bn1.running_mean", (0,)), "bn1.running_mean: changed otherwise"),
    "a number": (
        one_more("bn1.num_batches_tracked", ()),
        r"bn1.num_batches_tracked: changed otherwise is \d+, expected \d+",
    ),
    "missing": (lambda tensors: tensors.pop("bn1.bias"), "bn1.bias: missing"),
    "added": (lambda tensors: tensors.update(more=torch.ones(1)), "more: added"),
}
"""By kind: what changes the state dict of the ResNet with `head_edit(model, [1, 3])`, and what an
audit says of it."""
