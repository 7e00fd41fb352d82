"""Layouts read off shapes."""

from typing import Any

import pytest
import timm
import torch

from salve_plugin.adapter import attach
from salve_timm.layout import Arrangement, Layouts


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 8, 7, 7), Arrangement("nchw", 8)),
        ((2, 7, 7, 8), Arrangement("nhwc", 8)),
        ((2, 7, 7, 7), Arrangement("nchw", 7)),
        ((2, 16, 6), Arrangement("tokens", 6, 0, (4, 4))),
        ((2, 21, 6), Arrangement("tokens", 6, 5, (4, 4))),
        ((2, 4, 12), Arrangement("tokens", 12, 0, (2, 2))),
        ((2, 99, 6), None),
        ((32, 16, 6), None),
        ((2, 6), None),
        ((), None),
    ],
)
def test_a_shape_has_one_reading(shape: tuple[int, ...], expected: Arrangement | None) -> None:
    layouts = Layouts(maps=((6, 4, 4), (12, 2, 2)), nhwc=False, prefix=0, images=2)
    assert layouts.read(shape) == expected


def test_a_known_map_settles_what_its_sides_do_not() -> None:
    layouts = Layouts(maps=((7, 4, 5),), nhwc=False, prefix=0, images=2)
    assert layouts.read((2, 7, 4, 5)) == Arrangement("nchw", 7)
    assert layouts.read((2, 4, 5, 7)) == Arrangement("nhwc", 7)


def test_without_maps_a_square_number_of_patches_is_a_square() -> None:
    layouts = Layouts(maps=(), nhwc=False, prefix=1, images=2)
    assert layouts.read((2, 26, 8)) == Arrangement("tokens", 8, 1, (5, 5))
    assert layouts.read((2, 27, 8)) is None


def test_without_maps_the_passes_own_convolutions_and_constant_tokens_tell() -> None:
    layouts = Layouts(
        (),
        nhwc=False,
        prefix=0,
        images=2,
        sides=(32, 64),
        grids=frozenset({(8, 2)}),
        constant={37: 5},
    )
    assert layouts.read((2, 37, 8)) == Arrangement("tokens", 8, 5, (4, 8))
    assert layouts.read((2, 16, 8)) == Arrangement("tokens", 8, 0, (8, 2))
    assert layouts.read((2, 36, 8)) is None
    # Queries by head are no map, though a norm has worked on them.
    assert layouts.read((2, 3, 37, 8), features_last=True) is None
    assert layouts.read((2, 3, 37, 8)) is None


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_normalized_keys_are_no_map(pool: str) -> None:
    model = timm.create_model(
        "test_vit", num_classes=3, qk_norm=True, global_pool=pool, img_size=64
    )
    site = attach(model).attribution_site
    assert site is not None
    assert (site.layout, site.prefix_tokens, site.grid) == ("tokens", 1, (4, 4))


def test_a_rectangular_map_is_read_by_the_ratio_of_the_images() -> None:
    for height, width in ((256, 128), (128, 256), (100, 75), (75, 100)):
        for stride, channels in ((4, 64), (4, 32), (4, 25), (8, 16), (8, 13)):
            sides = -(-height // stride), -(-width // stride)
            layouts = Layouts((), nhwc=False, prefix=0, images=2, sides=(height, width))
            assert layouts.read((2, channels, *sides)) == Arrangement("nchw", channels)
            layouts = Layouts((), nhwc=True, prefix=0, images=2, sides=(height, width))
            assert layouts.read((2, *sides, channels)) == Arrangement("nhwc", channels)


@pytest.mark.parametrize(
    ("name", "size", "sites"),
    [
        ("resnet18", (256, 128), {"blocks.0.hook_resid_pre": 64, "blocks.0.hook_resid_post": 64}),
        ("resnet18", (128, 256), {"blocks.0.hook_resid_post": 64, "blocks.1.hook_resid_post": 128}),
        ("convnext_atto", (80, 160), {"blocks.0.hook_resid_post": 40}),
        ("swin_s3_tiny_224", (128, 256), {"blocks.1.hook_resid_post": 192}),
    ],
)
def test_a_probe_with_a_side_as_long_as_the_channels_is_not_mistaken(
    name: str, size: tuple[int, int], sites: dict[str, int]
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": size} if name.startswith("swin") else {}
    model = timm.create_model(name, num_classes=3, **options)
    hooked = attach(model, probe=torch.randn(2, 3, *size))
    for site, width in sites.items():
        assert hooked.site(site).width == width
        assert hooked.site(site).layout == ("nhwc" if name.startswith("swin") else "nchw")
