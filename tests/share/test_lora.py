"""LoRA adapters in PEFT's files: what is written is what is read, and what it does to a model."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from salve_plugin import Gate, HookedModel, LowRankUpdate, Site, attach, edit_at
from salve_plugin.errors import InputError, ReadError, UnsupportedModelError
from salve_plugin.share.lora import CONFIG_FILE, WEIGHTS_FILE, load_lora, save_lora


def network() -> HookedModel:
    torch.manual_seed(0)
    return attach(timm.create_model("test_vit", num_classes=7).eval())


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter(folder: Path, layers: dict[str, tuple[int, int]], **config: object) -> Path:
    """Write an adapter as PEFT does."""
    tensors = {}
    for seed, (layer, (outputs, inputs)) in enumerate(layers.items()):
        tensors[f"base_model.model.{layer}.lora_A.weight"] = draw(seed, 2, inputs)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = 0.1 * draw(seed + 9, outputs, 2)
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"} | config
    (folder / CONFIG_FILE).write_text(json.dumps(plain))
    return folder


LAYERS = {"blocks.0.attn.qkv": (192, 64), "blocks.1.mlp.fc2": (64, 192), "head": (7, 64)}


def test_an_adapter_becomes_edits_that_do_what_it_does(tmp_path: Path) -> None:
    hooked = network()
    edits = load_lora(hooked, adapter(tmp_path, LAYERS))
    assert [edit.targets[0].weight for edit in edits] == [f"{layer}.weight" for layer in LAYERS]
    images = draw(5, 2, 3, 160, 160)
    expected = network()
    handles = []
    for seed, layer in enumerate(LAYERS):
        lora_a, lora_b = draw(seed, 2, LAYERS[layer][1]), 0.1 * draw(seed + 9, LAYERS[layer][0], 2)

        def added(
            _: nn.Module,
            inputs: tuple[Tensor],
            output: Tensor,
            a: Tensor = lora_a,
            b: Tensor = lora_b,
        ) -> Tensor:
            return output + 2.0 * functional.linear(functional.linear(inputs[0], a), b)

        handles.append(expected.model.get_submodule(layer).register_forward_hook(added))
    for edit in edits:
        edit.apply_(hooked)
    with torch.no_grad():
        logits = expected(images)
        assert float((hooked(images) - logits).abs().max()) <= 1e-5 * float(
            logits.max() - logits.min()
        )
    for edit in edits:
        edit.revert_(hooked)


def test_edits_become_an_adapter_and_the_same_edits_again(tmp_path: Path) -> None:
    hooked = network()
    edits = [
        edit_at(hooked, "unembed.hook_in", LowRankUpdate(draw(0, 7, 1), draw(1, 64, 1))),
        edit_at(hooked, "blocks.1.mlp.hook_post", LowRankUpdate(draw(2, 64, 3), draw(3, 192, 3))),
    ]
    save_lora(edits, tmp_path)
    again = {edit.targets[0].weight: edit for edit in load_lora(hooked, tmp_path)}
    for edit in edits:
        other = again[edit.targets[0].weight].operator
        assert isinstance(other, LowRankUpdate)
        assert isinstance(edit.operator, LowRankUpdate)
        torch.testing.assert_close(
            other.left @ other.right.T,
            edit.operator.left.double() @ edit.operator.right.double().T,
        )


def test_what_no_lora_can_say_is_refused(tmp_path: Path) -> None:
    hooked = network()
    shifted = LowRankUpdate(draw(0, 7, 1), draw(1, 64, 1), draw(2, 7))
    rows = LowRankUpdate(draw(0, 2, 1), draw(1, 64, 1))
    for edit, message in (
        (edit_at(hooked, "unembed.hook_in", shifted), "shifts the bias"),
        (edit_at(hooked, "unembed.hook_in", rows, rows=[1, 2]), "not of a whole Linear"),
        (edit_at(hooked, "unembed.hook_in", Gate(torch.eye(64)[:1], 1.0)), "no low-rank update"),
    ):
        with pytest.raises(InputError, match=message):
            save_lora([edit], tmp_path)
    with pytest.raises(InputError, match="at least one layer"):
        save_lora([], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "another kind"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "another kind"),
        ({"lora_alpha": None}, "another kind"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"r": 8}, "has rank 2, .* says r = 8"),
        # Used only after these tokens; what a later PEFT may bring; taken out of the weights first.
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_something_new": True}, "use_something_new"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ],
)
def test_other_adapters_are_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_lora(network(), adapter(tmp_path, LAYERS, **config))


@pytest.mark.parametrize(
    ("layer", "a", "b"),
    [("patch_embed.proj", (1, 3, 16, 16), (64, 1, 1, 1)), ("head", (0, 64), (7, 0))],
    ids=["convolution", "rank 0"],
)
def test_an_adapter_of_no_linear_layer_is_refused_in_words(
    tmp_path: Path, layer: str, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    name = f"base_model.model.{layer}.lora_{{}}.weight"
    tensors = {name.format("A"): draw(0, *a), name.format("B"): draw(1, *b)}
    safetensors.torch.save_file(tensors, adapter(tmp_path, {}) / WEIGHTS_FILE, {"format": "pt"})
    with pytest.raises(InputError, match="no matrices that fit"):
        load_lora(network(), tmp_path)


def test_an_empty_adapter_and_one_with_a_matrix_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tensors"):
        load_lora(network(), adapter(tmp_path, {}))
    weights = adapter(tmp_path, {"head": (7, 64)}) / WEIGHTS_FILE
    tensors = safetensors.torch.load_file(weights)
    tensors["base_model.model.head.lora_A.default.weight"] = draw(5, 2, 64)
    safetensors.torch.save_file(tensors, weights)
    with pytest.raises(InputError, match="lora_A of 'head' is there twice"):
        load_lora(network(), tmp_path)


def test_files_and_layers_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="LoRA adapter"):
        load_lora(network(), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'nowhere'.*reads or writes no site"):
        load_lora(network(), adapter(tmp_path, {"nowhere": (3, 3)}))


class Forked(nn.Module):
    """Two layers read the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.left, self.right = nn.ReLU(), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(x)
        logits: Tensor = self.left(features) + self.right(features)
        return logits


def test_a_change_of_a_site_with_several_readers_is_no_lora(tmp_path: Path) -> None:
    both = Site("both", "act", "out", "pooled", 6, readers=("left", "right"))
    hooked = HookedModel(
        Forked().eval(), [both], attribution_site=None, description={}, probe=torch.ones(2, 6)
    )
    edit = edit_at(hooked, "both", Gate(torch.eye(6)[:1], 1.0))
    assert len(edit.targets) == 2
    with pytest.raises(InputError, match="no low-rank update"):
        save_lora([edit], tmp_path)
