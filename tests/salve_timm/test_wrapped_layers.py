"""Layers that an adapter has been put around: their own input is the site, not the bottleneck's."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach


class LoraLinear(nn.Module):
    """A LoRA around a layer, with the names that PEFT gives to its parts."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, layer.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.lora_B["default"](self.lora_A["default"](x))
        result: Tensor = self.base_layer(x) + update
        return result


def adapted(*layers: str) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=3)
    for block in model.blocks:
        for path in layers:
            parent, _, name = path.rpartition(".")
            wrapped = LoraLinear(block.get_submodule(path), rank=8)
            setattr(block.get_submodule(parent), name, wrapped)
    return model


@pytest.mark.parametrize(
    "layers", [("mlp.fc2",), ("mlp.fc1", "mlp.fc2"), ("attn.qkv", "attn.proj", "mlp.fc2")]
)
def test_sites_around_a_lora_are_those_without_it(layers: tuple[str, ...]) -> None:
    model, plain = adapted(*layers), attach(adapted())
    hooked = attach(model)
    assert list(hooked.sites) == list(plain.sites)
    for name, site in plain.sites.items():
        assert hooked.site(name).width == site.width, name
        assert hooked.site(name).layout == site.layout, name
    model.eval()
    seen: list[Tensor] = []
    torch.nn.init.normal_(model.blocks[1].mlp.fc2.lora_B["default"].weight)
    layer = model.blocks[1].mlp.fc2
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    _, cache = hooked.run_with_cache(torch.randn(1, 3, 160, 160))
    handle.remove()
    assert torch.equal(cache["blocks.1.mlp.hook_post"], seen[0])
    # The bottleneck reads the site and writes to the branch, too.
    fc2 = "blocks.1.mlp.fc2"
    readers = {f"{fc2}.base_layer", f"{fc2}.lora_A.default"}
    assert set(hooked.site("blocks.1.mlp.hook_post").readers) == readers
    assert hooked.site("blocks.1.hook_mlp_out").writers == ()
    assert plain.site("blocks.1.mlp.hook_post").readers == ("blocks.1.mlp.fc2",)
