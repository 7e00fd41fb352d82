"""Images beside their maps: what is shown is what was computed, in one scale, under its value."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from small_artifacts import altered, random_dictionary
from torch import Tensor, nn

from salve_plugin import Dictionary, HookedModel, attach, record, suppress
from salve_plugin.control.edit import Edit
from salve_plugin.errors import InputError
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.heat_maps import Explained, grad_fam_pictures, recorded_values
from salve_plugin.validate.pictures import Scale, overlay, png_bytes, stretched, to_picture
from salve_plugin.validate.sheets import GAP, SIDE, Tile, sheet


def edit_of(network: nn.Module) -> tuple[HookedModel, Dictionary, Edit]:
    hooked = attach(network)
    dictionary = random_dictionary(hooked)
    return hooked, dictionary, suppress(hooked, dictionary, latent=1, strength=2.0)


def pixels(png: bytes) -> Tensor:
    """Return the colours of a picture, (height, width, 3)."""
    with Image.open(BytesIO(png)) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).int()


def test_an_image_stands_beside_where_its_latent_comes_from(digits_network: nn.Module) -> None:
    hooked, dictionary, edit = edit_of(digits_network)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = grad_fam_pictures(hooked, dictionary, edit, images)
    assert list(pictures) == ["grad-fam-1", "grad-fam-2"]
    assert pictures == grad_fam_pictures(hooked, dictionary, edit, images)
    heat = LayerGradFam.of(hooked, dictionary).attribute(images, target=1)
    limit = float(heat.abs().max())  # one scale for both
    for image, one, png in zip(images, heat, pictures.values(), strict=True):
        seen = pixels(png)[GAP : GAP + SIDE]
        left, right = seen[:, GAP : GAP + SIDE], seen[:, SIDE + 2 * GAP :][:, :SIDE]
        original = stretched(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
        explained = overlay(image, one, size=SIDE, signed=True, limit=limit)
        assert distance(left, original) < 3
        assert distance(right, explained) < 3
        assert distance(left, explained) > 10
    assert pictures["grad-fam-1"] != pictures["grad-fam-2"]
    with pytest.raises(InputError, match="1 names for 2 images"):
        grad_fam_pictures(hooked, dictionary, edit, images, names=["one"])


def test_the_value_under_a_map_is_the_latents_own(digits_network: nn.Module) -> None:
    hooked, dictionary, _ = edit_of(digits_network)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    acts = record(hooked, [(images, torch.zeros(3, dtype=torch.long))], progress=False)
    explained = Explained.of(hooked, dictionary, images, [1, 0, 1])
    every = [recorded_values(acts, dictionary, latent) for latent in (0, 1)]
    expected = torch.stack([every[1][0], every[0][1], every[1][2]])
    torch.testing.assert_close(explained.values.double(), expected, rtol=1e-4, atol=1e-5)
    scale = Scale(1.0, signed=True)
    caption = explained.tiles(["a", "b", "c"], scale)[1][1].caption
    assert caption == f"latent 0, z = {explained.values[1]:.3g}"


def test_a_sheet_has_its_tiles_in_rows_and_captions_of_any_letters() -> None:
    bright, dark = (to_picture(torch.full((3, 8, 16), value)) for value in (0.9, 0.1))
    tiles = [Tile(bright, "$x$ 犬 <b>" * 40), Tile(dark, ""), None, Tile(dark, "d")]
    seen = pixels(sheet(tiles, columns=2))
    wide = 2 * SIDE
    assert seen.shape[1] == 2 * wide + 3 * GAP
    top = seen[GAP : GAP + SIDE]
    assert (top[:, GAP : GAP + wide] > 200).all()
    assert (top[:, 2 * GAP + wide : -GAP] < 50).all()
    below = seen[-GAP - SIDE :]
    assert (below[:, GAP : GAP + wide] == 255).all()  # the empty place
    assert (below[:, 2 * GAP + wide : -GAP][: SIDE // 2] < 50).any()
    scale = Scale(2.0, signed=True)
    assert pixels(sheet(tiles, columns=2, scale=scale)).shape[1] > seen.shape[1]


def distance(seen: Tensor, picture: Image.Image) -> float:
    """Return the mean difference, of 255; a palette makes some."""
    return float((seen.int() - pixels(png_bytes(picture)).int()).abs().float().mean())


def test_another_dictionary_has_other_latents(digits_resnet: nn.Module) -> None:
    hooked, dictionary, edit = edit_of(digits_resnet)
    other = altered(edit, dictionary_digest="00" * 32)
    with pytest.raises(InputError, match="pass the one that the edit was made with"):
        grad_fam_pictures(hooked, dictionary, other, torch.rand(1, 1, 32, 32))


def test_an_edit_that_knows_no_dictionary_has_no_map(digits_resnet: nn.Module) -> None:
    hooked, dictionary, edit = edit_of(digits_resnet)
    unknown = altered(edit, dictionary_digest=None)
    with pytest.raises(InputError, match="does not say which dictionary"):
        grad_fam_pictures(hooked, dictionary, unknown, torch.rand(1, 1, 32, 32))
