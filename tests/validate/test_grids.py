"""Heat maps of images with another aspect ratio than those of `attach`."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import AttributionError, InputError
from salve_plugin.validate.grids import grid_of_call

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
MODELS: dict[str, dict[str, Any]] = {
    "test_vit": {"img_size": 64, "dynamic_img_size": True, "num_classes": 3},
    "naflexvit_base_patch16_gap": SMALL,  # a linear patch embedding: no map, no convolution
}


def made(name: str, make_affine: Callable[[int], Dictionary]) -> tuple[salve.HookedModel, Any]:
    torch.manual_seed(0)
    model = timm.create_model(name, **MODELS[name]).eval()
    hooked = salve.attach(model, probe=torch.randn(2, 3, 64, 64))
    return hooked, make_affine(hooked.site("unembed.hook_in").width)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(32, 128), (128, 32), (64, 64), (32, 64), (96, 48)])
def test_the_grid_is_that_of_the_images_that_are_explained(
    name: str, size: tuple[int, int], make_affine: Callable[[int], Dictionary]
) -> None:
    hooked, dictionary = made(name, make_affine)
    layer = hooked.attribution_site
    assert layer is not None
    assert layer.grid == (4, 4)
    images = torch.randn(2, 3, *size)
    site = hooked.site("unembed.hook_in")
    grid = size[0] // 16, size[1] // 16
    module, reads = hooked.model.get_submodule(layer.module), hooked.model.get_submodule
    fam = salve.LayerGradFam(
        hooked.model, (module, layer.side), dictionary, site=(reads(site.module), site.side),
        tokens=(layer.prefix_tokens, grid),
    )  # fmt: skip
    by_site = salve.LayerGradFam(hooked.model, layer, dictionary, site=site)
    heat = by_site.attribute(images, target=1)
    assert heat.shape == (2, 1, *grid)
    assert torch.equal(heat, fam.attribute(images, target=1))


def test_a_grid_that_the_caller_names_wrongly_is_refused(
    make_affine: Callable[[int], Dictionary],
) -> None:
    hooked, dictionary = made("test_vit", make_affine)
    layer, site = hooked.attribution_site, hooked.site("unembed.hook_in")
    assert layer is not None
    fam = salve.LayerGradFam(
        hooked.model, hooked.model.get_submodule(layer.module), dictionary, site=site,
        tokens=(1, (4, 4)),
    )  # fmt: skip
    with pytest.raises(InputError, match=re.escape("pass tokens=(1, (2, 8))")):
        fam.attribute(torch.randn(2, 3, 32, 128), target=1)


def test_patches_with_their_coordinates_have_the_grid_that_those_say(
    make_affine: Callable[[int], Dictionary],
) -> None:
    hooked, dictionary = made("naflexvit_base_patch16_gap", make_affine)
    model: Any = hooked.model
    layer, site = hooked.attribution_site, hooked.site("unembed.hook_in")
    assert layer is not None
    fam = salve.LayerGradFam(hooked.model, layer, dictionary, site=site)
    images = torch.randn(2, 3, 32, 128)
    patches = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1)
    patches = patches.reshape(2, 16, 768)
    rows, columns = torch.arange(2), torch.arange(8)
    coordinates = torch.cartesian_prod(rows, columns).expand(2, 16, 2)
    valid = torch.ones(2, 16, dtype=torch.bool)
    heat = fam.attribute(patches, 1, additional_forward_args=(coordinates, valid))
    assert heat.shape == (2, 1, 2, 8)
    torch.testing.assert_close(heat, fam.attribute(images, target=1))
    mixed = torch.stack([coordinates[0], coordinates[0].flip(1)])
    with pytest.raises(AttributionError, match="one size at a time"):
        fam.attribute(patches, 1, additional_forward_args=(mixed, valid))

    def packed(x: Tensor) -> Any:
        return model({"patches": x, "patch_coord": coordinates, "patch_valid": valid})

    fam = salve.LayerGradFam(packed, model.blocks[-1], dictionary,
                             site=(model.head, "in"), tokens=(4, (2, 8)))  # fmt: skip
    assert torch.equal(fam.attribute(patches, 1), heat)


def test_without_any_sign_of_the_grid_nothing_is_drawn() -> None:
    with pytest.raises(AttributionError, match="grid of the 16 patches cannot be told"):
        grid_of_call((0, (4, 4)), 16, [torch.zeros(2, 16, 8)], set(), given=False)
    for inputs, grids in (
        ([torch.zeros(2, 16, 8)], {(2, 8)}),
        ([torch.zeros(1, 3, 20, 80)], set()),
    ):
        assert grid_of_call((1, (4, 4)), 17, inputs, grids, given=False) == (1, (2, 8))
    # Several convolutions ran on maps of as many positions: the images' shape tells.
    two = {(2, 8), (8, 2)}
    assert grid_of_call((0, (4, 4)), 16, [torch.zeros(1, 3, 90, 20)], two, given=False) == (
        0, (8, 2),
    )  # fmt: skip
