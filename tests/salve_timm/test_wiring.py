"""Readers and writers of the body's sites: an edit of their weights is an edit of the site."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.hooks import HookedModel, tapped
from salve_plugin.site import HEAD_INPUT, Site
from salve_timm.wiring import affine_at, scale_and_shift

VIT: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
SWIN: dict[str, Any] = {"img_size": 56, "embed_dim": 12, "depths": (2, 1, 1, 1),
                        "num_heads": (1, 2, 2, 2)}  # fmt: skip
CONVNEXT: dict[str, Any] = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24)}
INNER_VIT = [f"blocks.{i}.{name}" for i in range(2)
             for name in ("ln1.hook_normalized", "attn.hook_z", "ln2.hook_normalized",
                          "mlp.hook_post")]  # fmt: skip
BRANCHES = [f"blocks.{i}.hook_{name}_out" for i in range(2) for name in ("attn", "mlp")]
INNER_STAGES = ["0.0", "1.0", "1.1", "2.0", "3.0"]
MLPS = ("ln2.hook_normalized", "mlp.hook_post")

CLASSES = {"ConvNeXt": ConvNeXt, "MlpMixer": MlpMixer}

# name, arguments, image side, sites with readers, sites with a writer; without the head's
FAMILIES: list[tuple[str, dict[str, Any], int, list[str], list[str]]] = [
    (
        "resnet18",
        {"layers": (2, 1, 1, 1), "channels": (64, 24, 32, 48)},
        64,
        ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"],
        [],
    ),
    (
        "resnet50",
        {"layers": (1, 1, 1, 1), "channels": (12, 16, 24, 32)},
        64,
        ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post",
         "blocks.2.hook_resid_post"],
        [],
    ),
    (
        "regnety_002",
        {},
        64,
        ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post",
         "blocks.2.hook_resid_post"],
        [],
    ),
    (
        "convnext_atto",
        CONVNEXT | {"conv_mlp": False},
        64,
        [f"blocks.{inner}.{name}" for inner in INNER_STAGES for name in MLPS],
        [f"blocks.{inner}.hook_mlp_out" for inner in INNER_STAGES],
    ),
    (
        "ConvNeXt",
        CONVNEXT | {"conv_mlp": True, "ls_init_value": None},
        64,
        [f"blocks.{inner}.{name}" for inner in INNER_STAGES for name in MLPS],
        [f"blocks.{inner}.hook_mlp_out" for inner in INNER_STAGES],
    ),
    (
        "tf_efficientnet_lite0",
        {},
        64,
        [f"blocks.{i}.hook_resid_post" for i in range(7)],
        ["blocks.0.hook_resid_post", "blocks.6.hook_resid_post"],
    ),
    (
        "mobilenetv2_050",
        {},
        64,
        [f"blocks.{i}.hook_resid_post" for i in range(7)],
        ["blocks.0.hook_resid_post", "blocks.6.hook_resid_post"],
    ),
    (
        "mobilenetv3_small_050",
        {},
        64,
        [f"blocks.{i}.hook_resid_post" for i in (0, 1, 3, 4)],  # blocks.3.0 has a shortcut
        ["blocks.0.hook_resid_post"],
    ),
    ("vit_small_patch16_224", VIT, 64, INNER_VIT, BRANCHES),
    ("deit3_small_patch16_224", VIT, 64, INNER_VIT, BRANCHES),
    (
        "beit_base_patch16_224",
        VIT | {"init_values": 0.1},
        64,
        [name for name in INNER_VIT if "ln1" not in name],  # qkv is called as a function
        BRANCHES,
    ),
    (
        "swin_tiny_patch4_window7_224",
        SWIN,
        56,
        [*(f"blocks.{i}.{name}" for i in ("0.0", "0.1", "1.0", "2.0", "3.0")
           for name in ("ln1.hook_normalized", *MLPS)),
         *(f"blocks.{i}.0.attn.hook_z" for i in (1, 2, 3))],  # a single window
        [f"blocks.{i}.hook_{name}_out" for i in ("0.0", "0.1", "1.0", "2.0", "3.0")
         for name in ("attn", "mlp")],
    ),
    (
        "MlpMixer",
        {"img_size": 64, "patch_size": 16, "num_blocks": 2, "embed_dim": 48},
        64,
        [f"blocks.{i}.{name}" for i in range(2) for name in MLPS],
        ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_mlp_out" for i in range(2))],
    ),
]  # fmt: skip


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return the model in float64, with nothing left at a value that does nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in CLASSES:  # some arguments cannot be given by name
            model: nn.Module = CLASSES[name](num_classes=5, **arguments)
        else:
            model = timm.create_model(name, num_classes=5, **arguments)
        with torch.no_grad():
            for key, value in [*model.named_parameters(), *model.named_buffers()]:
                if key.endswith("running_var") or "gamma" in key:
                    value.copy_(0.5 + torch.rand(value.shape))
                elif value.is_floating_point() and value.ndim == 1:
                    value.add_(torch.rand(value.shape) - 0.5)
                elif value.is_floating_point() and value.ndim > 1:
                    value.normal_(std=value[0].numel() ** -0.5)
    return model.double().eval()


def images_of(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits


def by_hook(model: nn.Module, site: Site, change: Tensor, images: Tensor) -> Tensor:
    """Return the logits with x + change x in the place of x (width)."""

    def changed(x: Tensor) -> Tensor:
        features = x.movedim(site.channel_axis, -1)
        return (features + features @ change.T).movedim(-1, site.channel_axis)

    with tapped(model, site, changed):
        return logits_of(model, images)


def edited_at_readers(model: nn.Module, site: Site, change: Tensor) -> nn.Module:
    """Return a copy with W (1 + change) in every reader: W' = W + (W u) v^T, kernel by kernel."""
    model = deepcopy(model)
    for path in site.readers:
        weight = model.get_submodule(path).get_parameter("weight")
        weight.data += torch.einsum("oi...,ij->oj...", weight.data, change)
    return model


def edited_at_writer(model: nn.Module, site: Site, change: Tensor) -> nn.Module:
    """Return a copy whose writer makes y with s y + t = (1 + change)(s y0 + t), y0 the original."""
    model = deepcopy(model)
    (path,) = site.writers
    layer: Any = model.get_submodule(path)
    scale = torch.ones(site.width, dtype=torch.float64)
    shift = torch.zeros(site.width, dtype=torch.float64)
    for inner in site.affine:
        pair = affine_at(model, inner)
        assert pair is not None
        scale, shift = scale * pair[0], shift * pair[0] + pair[1]
    bias = layer.bias.data if layer.bias is not None else torch.zeros_like(shift)
    folded = change * scale / scale[:, None]
    layer.bias = nn.Parameter(bias + folded @ bias + (change @ shift) / scale)
    layer.weight.data += torch.einsum("ij,jk...->ik...", folded, layer.weight.data)
    return model


def check_exact(hooked: HookedModel, side: int) -> None:
    images = images_of(side)
    plain = logits_of(hooked.model, images)
    spread = float(plain.max() - plain.min())
    generator = torch.Generator().manual_seed(4)
    for site in hooked.sites.values():
        u, v = torch.randn(2, site.width, generator=generator, dtype=torch.float64)
        change = torch.outer(u, v) / site.width
        models = [edited_at_readers(hooked.model, site, change)] if site.readers else []
        models += [edited_at_writer(hooked.model, site, change)] if site.writers else []
        expected = by_hook(hooked.model, site, change, images)
        assert float((expected - plain).abs().max()) > 1e-6 * spread, site
        for model in models:
            difference = float((logits_of(model, images) - expected).abs().max())
            assert difference <= 1e-9 * spread, site


@pytest.mark.parametrize(
    ("name", "arguments", "side", "read", "written"),
    FAMILIES,
    ids=[f"{number}-{row[0]}" for number, row in enumerate(FAMILIES)],
)
def test_an_edit_of_readers_or_writer_is_an_edit_of_the_site(
    name: str, arguments: dict[str, Any], side: int, read: list[str], written: list[str]
) -> None:
    hooked = attach(build(name, arguments), probe=images_of(side).flip(3))
    check_exact(hooked, side)
    found = {key for key, site in hooked.sites.items() if site.readers and key != HEAD_INPUT}
    assert found == set(read)
    assert {key for key, site in hooked.sites.items() if site.writers} == set(written)


def small(name: str, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, num_classes=3, **arguments)
    return model.eval()


def test_a_stage_that_an_identity_shortcut_reads_has_no_readers() -> None:
    sites = attach(small("resnet18")).sites
    assert sites["blocks.0.hook_resid_pre"].readers == ()  # layer1 begins without a projection
    assert sites["blocks.0.hook_resid_post"].readers == (
        "layer2.0.conv1",
        "layer2.0.downsample.0",
    )
    streams = [
        site
        for site in attach(small("test_vit")).sites.values()
        if site.name.endswith(("hook_resid_pre", "hook_resid_mid", "hook_resid_post"))
    ]
    assert len(streams) == 13
    assert not any(site.readers or site.writers for site in streams)


def test_a_consumer_that_is_no_module_is_noticed() -> None:
    model: Any = small("test_vit")
    mlp = model.blocks[2].mlp
    mlp.register_forward_hook(lambda _module, inputs, output: output + 1e-3 * inputs[0].tanh())
    sites = attach(model).sites
    assert sites["blocks.2.ln2.hook_normalized"].readers == ()
    assert sites["blocks.2.hook_mlp_out"].writers == ()
    assert sites["blocks.2.mlp.hook_post"].readers == ("blocks.2.mlp.fc2",)
    assert sites["blocks.3.ln2.hook_normalized"].readers == ("blocks.3.mlp.fc1",)


def test_a_weight_that_is_standardized_or_shared_is_no_target() -> None:
    sites = attach(small("test_nfnet")).sites
    assert not [key for key, site in sites.items() if site.readers and key != HEAD_INPUT]
    model: Any = small("test_vit")
    model.blocks[1].mlp.fc2.weight = model.blocks[0].mlp.fc2.weight
    sites = attach(model).sites
    assert not any(sites[f"blocks.{i}.mlp.hook_post"].readers for i in range(2))
    assert not any(sites[f"blocks.{i}.hook_mlp_out"].writers for i in range(2))
    assert sites["blocks.2.mlp.hook_post"].readers == ("blocks.2.mlp.fc2",)


def test_without_values_only_what_structure_makes_certain_is_listed() -> None:
    with torch.device("meta"):
        model = small("deit3_small_patch16_224", **VIT)
    hollow, real = attach(model).sites, attach(small("deit3_small_patch16_224", **VIT)).sites
    assert [site.readers for site in hollow.values()] == [site.readers for site in real.values()]
    assert hollow["blocks.0.hook_mlp_out"].writers == ()
    assert real["blocks.0.hook_mlp_out"].affine == ("blocks.0.ls2",)


@pytest.mark.parametrize("name", ["levit_128s", "resnet18"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_fresh_weights_hide_no_consumer_and_come_back(name: str, kind: torch.dtype) -> None:
    # LeViT's branches end in BatchNorm scales of zero, behind which a second reader is hidden.
    model = small(name).to(kind)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    before = {key: (value.data_ptr(), value.clone()) for key, value in tensors.items()}
    sites = attach(model).sites
    for key, value in tensors.items():
        pointer, copy = before[key]
        assert (value.data_ptr(), value.dtype) == (pointer, copy.dtype)
        assert torch.equal(value, copy)
    streams = {key for key, site in sites.items() if site.readers and "resid" in key}
    assert len(streams) == (0 if name == "levit_128s" else 3)


def test_frozen_weights_are_measured_and_left_without_gradients() -> None:
    model = small("test_vit").requires_grad_(False)
    sites = attach(model).sites
    assert sites["blocks.0.hook_mlp_out"].writers == ("blocks.0.mlp.fc2",)
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_weights_without_gradients_leave_what_structure_makes_certain() -> None:
    with torch.inference_mode():
        model = small("test_convnext")
    sites = attach(model).sites
    assert sites["blocks.1.0.mlp.hook_post"].readers == ("stages.1.blocks.0.mlp.fc2",)


def test_maps_keep_their_features_where_the_layer_does() -> None:
    model = small("convnext_atto", **CONVNEXT, conv_mlp=False)
    sites = attach(model, probe=torch.randn(2, 3, 64, 96)).sites
    assert (sites["blocks.0.0.mlp.hook_post"].layout, sites["blocks.0.0.mlp.hook_post"].width) == (
        "nhwc",
        32,
    )
    assert sites["blocks.0.hook_resid_post"].layout == "nchw"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_other_precisions_find_the_same(kind: torch.dtype) -> None:
    expected = attach(small("test_vit").double()).sites
    sites = attach(small("test_vit").to(kind)).sites
    assert dict(sites) == dict(expected)


def test_what_scales_and_shifts_features() -> None:
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean, norm.running_var = torch.rand(4), torch.rand(4)
    pair = scale_and_shift(norm)
    assert pair is not None
    expected = x * pair[0][:, None, None] + pair[1][:, None, None]
    torch.testing.assert_close(norm(x), expected)
    plain = nn.BatchNorm2d(4, affine=False).eval()
    assert scale_and_shift(plain) is not None
    assert scale_and_shift(nn.BatchNorm2d(4, track_running_stats=False)) is None
    assert scale_and_shift(BatchNormAct2d(4)) is None
    assert scale_and_shift(BatchNormAct2d(4, apply_act=False)) is not None
    assert scale_and_shift(nn.LayerNorm(4)) is None
