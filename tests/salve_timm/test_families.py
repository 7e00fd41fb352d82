"""Attaching the families of timm, on real values and small sizes."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.hooks import HookedModel, reading
from salve_plugin.site import Site

SMALL_VIT: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
SMALL_SWIN: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}

# name, arguments, layout of the attribution site, its prefix tokens, module of that site
FAMILIES: list[tuple[str, dict[str, Any], str, int, str]] = [
    ("test_resnet", {}, "nchw", 0, "layer4"),
    ("test_convnext", {}, "nchw", 0, "stages.3"),
    ("test_efficientnet", {}, "nchw", 0, "bn2"),
    ("test_nfnet", {}, "nchw", 0, "final_act"),
    ("test_mambaout", {}, "nhwc", 0, "stages.3"),
    ("test_coatnet", {}, "nchw", 0, "norm"),
    ("test_byobnet", {}, "nchw", 0, "stages.3"),
    ("mobilenetv3_small_050", {}, "nchw", 0, "blocks.5"),
    ("regnetx_002", {}, "nchw", 0, "s4"),
    ("ghostnet_050", {}, "nchw", 0, "blocks.9"),
    ("starnet_s050", {}, "nchw", 0, "norm"),
    ("edgenext_xx_small", {}, "nchw", 0, "stages.3"),
    ("efficientvit_b0", {}, "nchw", 0, "stages.3"),
    ("efficientvit_m0", {}, "nchw", 0, "stages.2"),
    ("shvit_s1", {}, "nchw", 0, "stages.2"),
    ("dla46x_c", {}, "nchw", 0, "level5"),
    ("test_vit", {}, "tokens", 1, "blocks.5.norm1"),
    ("test_vit2", {}, "tokens", 1, "blocks.7"),
    ("test_vit_relpos", {}, "tokens", 0, "blocks.8"),
    (
        "deit_tiny_distilled_patch16_224",
        {"img_size": 64, "depth": 2},
        "tokens",
        2,
        "blocks.1.norm1",
    ),
    ("deit3_small_patch16_224", SMALL_VIT, "tokens", 1, "blocks.1.norm1"),
    ("vit_small_patch14_reg4_dinov2", SMALL_VIT | {"img_size": 56}, "tokens", 5, "blocks.1.norm1"),
    ("vit_base_patch16_siglip_224", SMALL_VIT, "tokens", 0, "norm"),
    ("beit_base_patch16_224", SMALL_VIT, "tokens", 1, "blocks.1"),
    ("samvit_base_patch16_224", SMALL_VIT, "nchw", 0, "neck"),
    ("cait_xxs24_224", {"img_size": 64, "depth": 2}, "tokens", 1, "blocks_token_only.1.norm1"),
    ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}, "tokens", 1, "cls_attn_blocks.1.norm1"),
    ("tnt_s_patch16_224", {"img_size": 64, "depth": 2}, "tokens", 1, "blocks.1.norm_out"),
    ("pit_ti_224", {"img_size": 64}, "tokens", 1, "transformers.2.blocks.3.norm1"),
    ("levit_128s", {"img_size": 128}, "tokens", 0, "stages.2"),
    ("swin_tiny_patch4_window7_224", SMALL_SWIN | {"img_size": 56}, "nhwc", 0, "norm"),
    ("swinv2_tiny_window8_256", SMALL_SWIN | {"img_size": 64}, "nhwc", 0, "norm"),
    ("efficientformerv2_s0", {"img_size": 64}, "nchw", 0, "norm"),
]
HEAVIER: list[tuple[str, dict[str, Any], str, int, str]] = [
    ("vgg11", {}, "nchw", 0, "features.20"),
    ("densenet121", {}, "nchw", 0, "features"),
    ("hrnet_w18_small", {}, "nchw", 0, "final_layer"),
    ("crossvit_tiny_240", {}, "tokens", 1, "blocks.2.fusion.1.norm1"),
    ("coat_tiny", {"img_size": 64}, "tokens", 1, "parallel_blocks.5.norm14"),
    ("repvit_m0_9", {}, "nchw", 0, "stages.3"),
    ("efficientvim_m1_dist", {}, "nchw", 0, "norm.3"),
    ("twins_svt_small", {}, "tokens", 0, "norm"),
    ("convit_tiny", {"img_size": 64}, "tokens", 1, "blocks.11.norm1"),
    ("mvitv2_tiny", {"img_size": 64}, "tokens", 0, "norm"),
    ("sequencer2d_s", {}, "nhwc", 0, "norm"),
    ("resnetv2_18", {}, "nchw", 0, "norm"),
]


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return the architecture with seeded random weights and five classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, num_classes=5, **arguments)
    return model.eval()


def images_for(hooked: HookedModel, model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """Return two images of the size that the model takes."""
    cfg: Any = model.pretrained_cfg
    side = arguments.get("img_size", cfg["input_size"][-1])
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 3, side, side, generator=generator)


def logits_from_sites(hooked: HookedModel, seen: dict[str, Tensor]) -> Tensor:
    """Return the sum over head sites of x W^T + b."""
    terms = []
    for name in hooked.head_sites:
        weight, bias = hooked.unembed(name, partial=True)
        terms.append(seen[name].flatten(1) @ weight.T + bias)
    return torch.stack(terms).sum(0)


def patch_gradient(hooked: HookedModel, look: Site, images: Tensor) -> Tensor:
    """Return the gradient, at the patches, of a random direction of the heads' inputs."""
    wanted = [look, *(hooked.site(name) for name in hooked.head_sites)]
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> Tensor:
        if not tensor.requires_grad:
            tensor = tensor.requires_grad_()
        kept[hook.name] = tensor.clone()
        return kept[hook.name].clone()

    hooked.run_with_hooks(images, fwd_hooks=[(site.name, keep) for site in wanted])
    generator = torch.Generator().manual_seed(1)
    loss = torch.stack(
        [
            (kept[name] * torch.randn(kept[name].shape, generator=generator)).sum()
            for name in hooked.head_sites
        ]
    ).sum()
    (gradient,) = torch.autograd.grad(loss, kept[look.name])
    return gradient[:, look.prefix_tokens :] if look.layout == "tokens" else gradient


def check_attached(
    name: str, arguments: dict[str, Any], layout: str, prefix: int, module: str
) -> None:
    model = build(name, arguments)
    modes = [each.training for each in model.modules()]
    hooked = attach(model)
    assert hooked.description["verified"] == "values"
    assert [each.training for each in model.modules()] == modes

    images = images_for(hooked, model, arguments)
    with torch.no_grad(), reading(model, list(hooked.sites.values())) as seen:
        logits = hooked(images)
    torch.testing.assert_close(logits_from_sites(hooked, seen), logits, rtol=1e-4, atol=1e-5)
    for site in hooked.sites.values():
        rows = site.rows(seen[site.name])
        if site.grid is not None:
            assert len(rows) == 2 * (site.prefix_tokens + site.grid[0] * site.grid[1])

    look = hooked.attribution_site
    assert look is not None
    assert look in hooked.sites.values()
    assert (look.layout, look.prefix_tokens, look.module) == (layout, prefix, module)
    assert int(patch_gradient(hooked, look, images).count_nonzero()) > 0


@pytest.mark.parametrize(
    ("name", "arguments", "layout", "prefix", "module"), FAMILIES, ids=[row[0] for row in FAMILIES]
)
def test_logits_come_from_the_head_sites_and_patches_have_gradients(
    name: str, arguments: dict[str, Any], layout: str, prefix: int, module: str
) -> None:
    check_attached(name, arguments, layout, prefix, module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "layout", "prefix", "module"), HEAVIER, ids=[row[0] for row in HEAVIER]
)
def test_so_it_is_in_heavier_families(
    name: str, arguments: dict[str, Any], layout: str, prefix: int, module: str
) -> None:
    check_attached(name, arguments, layout, prefix, module)


def test_the_class_token_s_patches_have_no_gradient_behind_the_last_attention() -> None:
    model = build("test_vit", {})
    hooked = attach(model)
    images = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    after = hooked.site("blocks.5.hook_resid_post")
    assert int(patch_gradient(hooked, after, images).count_nonzero()) == 0
