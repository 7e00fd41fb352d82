"""Names, readers and writers of the body's hook points."""

from typing import Any

import pytest
import timm
import torch

from salve_plugin.adapter import attach
from salve_plugin.hooks import HookedModel, reading
from salve_plugin.site import Site


def attached(name: str, **arguments: Any) -> HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return attach(timm.create_model(name, num_classes=3, **arguments).eval())


@pytest.fixture(scope="module")
def vit() -> HookedModel:
    return attached("test_vit")


def test_a_vision_transformer_has_transformer_lens_names(vit: HookedModel) -> None:
    inner = [
        "ln1.hook_normalized", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
        "ln2.hook_normalized", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
    ]  # fmt: skip
    expected = [f"blocks.{i}.{name}" for i in range(6) for name in inner]
    assert list(vit.sites) == [
        "blocks.0.hook_resid_pre", *expected, "ln_final.hook_normalized", "unembed.hook_in",
    ]  # fmt: skip


def test_the_stages_of_a_cnn_are_blocks() -> None:
    assert list(attached("test_resnet").sites) == [
        "blocks.0.hook_resid_pre",
        *(f"blocks.{i}.hook_resid_post" for i in range(4)),
        "unembed.hook_in",
    ]


def test_readers_and_writers_touch_exactly_the_site(vit: HookedModel) -> None:
    sites = [site for site in vit.sites.values() if site.readers or site.writers]
    assert len(sites) == 6 * 6 + 1
    layers: list[Site] = []
    for site in sites:
        layers += [Site(f"{site.name} {path}", path, "in", "tokens", 1) for path in site.readers]
        layers += [Site(f"{site.name} {path}", path, "out", "tokens", 1) for path in site.writers]
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), reading(vit.model, [*sites, *layers]) as seen:
        vit.model(images)
    for site in sites:
        for path in (*site.readers, *site.writers):
            assert torch.equal(seen[site.name], seen[f"{site.name} {path}"])


def test_the_branches_add_up_to_the_residual_stream(vit: HookedModel) -> None:
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = vit.run_with_cache(images)
    middle = cache["blocks.0.hook_resid_pre"] + cache["blocks.0.hook_attn_out"]
    torch.testing.assert_close(middle, cache["blocks.0.hook_resid_mid"])
    end = middle + cache["blocks.0.hook_mlp_out"]
    torch.testing.assert_close(end, cache["blocks.0.hook_resid_post"])


@pytest.mark.parametrize(
    ("name", "arguments", "scales"),
    [
        ("beit_base_patch16_224", {"init_values": 0.1}, ("blocks.1.gamma_2",)),
        ("eva02_tiny_patch14_224", {"img_size": 56}, ()),
        ("deit3_small_patch16_224", {}, ("blocks.1.ls2",)),
        ("xcit_nano_12_p16_224", {"embed_dim": 128, "num_heads": 4}, ("blocks.1.gamma2",)),
    ],
)
def test_layer_scale_is_part_of_what_a_branch_adds(
    name: str, arguments: dict[str, Any], scales: tuple[str, ...]
) -> None:
    sizes = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
    hooked = attached(name, **(sizes | arguments))
    side = (sizes | arguments)["img_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = hooked.run_with_cache(images)
    total = cache["blocks.1.hook_resid_mid"] + cache["blocks.1.hook_mlp_out"]
    torch.testing.assert_close(total, cache["blocks.1.hook_resid_post"])
    site = hooked.site("blocks.1.hook_mlp_out")
    assert (site.writers, site.affine) == (("blocks.1.mlp.fc2",), scales)


def test_the_attention_pattern_is_there_only_where_it_is_computed(vit: HookedModel) -> None:
    assert not [name for name in vit.sites if "hook_pattern" in name]
    model: Any = timm.create_model("test_vit", num_classes=3).eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    hooked = attach(model)
    with torch.no_grad():
        _, cache = hooked.run_with_cache(torch.zeros(1, 3, 160, 160))
    pattern = cache["blocks.0.attn.hook_pattern"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))


def test_an_mlp_s_last_layer_is_found_under_any_name() -> None:
    with torch.device("meta"):
        hooked = attach(timm.create_model("vitamin_small_224", num_classes=3).eval())
    post = hooked.site("blocks.0.mlp.hook_post")
    assert post.readers == (post.module,)
    assert not post.module.endswith("fc2")
    assert hooked.site("blocks.0.hook_mlp_out").writers == post.readers


def test_post_norm_blocks_show_their_residual_stream_only() -> None:
    hooked = attached("test_vit_relpos")
    model = attached("swinv2_tiny_window8_256", img_size=64, depths=(1, 1), embed_dim=24,
                     num_heads=(1, 2))  # fmt: skip
    assert "blocks.0.ln1.hook_normalized" in hooked.sites
    assert not [name for name in model.sites if "ln1" in name or "mlp" in name]
