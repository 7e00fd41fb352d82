"""Overlays: colours that can be redone by hand, and maps that have none."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.pictures import (
    Scale,
    coloured,
    overlay,
    png_bytes,
    stretched,
    to_picture,
)


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).int()


def test_without_the_heat_map_the_overlay_is_the_image_in_grey() -> None:
    image = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])  # stretched: 0, 1/4, 1/2, 1
    got = pixels(overlay(image, torch.ones(2, 2), alpha=0.0))
    grey = torch.tensor([[0, 64, 128, 255]]).reshape(2, 2, 1).expand(2, 2, 3)
    assert torch.equal(got, grey.int())


def luminance(colours: Tensor) -> Tensor:
    """Return CIE L* of sRGB colours (3, ...): how bright they look, as in a print in grey."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    y = torch.einsum("c,c...->...", torch.tensor([0.2126, 0.7152, 0.0722]), linear)
    return torch.where(y > 0.008856, 116 * y ** (1 / 3) - 16, 903.3 * y)


@pytest.mark.parametrize("least", [-1.0, 0.0])
def test_a_larger_value_is_brighter_in_grey_too(least: float) -> None:
    levels = luminance(coloured(torch.linspace(least, 1, 65)[None]))[0]
    assert (levels.diff() > 0).all()
    assert levels[-1] - levels[0] > 60  # of 100


def test_a_signed_map_is_blue_below_zero_grey_at_zero_and_yellow_above() -> None:
    red, green, blue = coloured(torch.tensor([[-2.0, 0.0, 2.0]]))[:, 0]
    assert blue[0] > red[0] + 0.2
    assert min(red[2], green[2]) > blue[2] + 0.2
    assert max(red[1], green[1], blue[1]) - min(red[1], green[1], blue[1]) < 0.05


def test_scaling_a_map_does_not_change_its_colours() -> None:
    heat = torch.tensor([[-1.0, 0.5], [0.25, 0.0]])
    assert torch.equal(coloured(heat), coloured(heat * 1024))


def test_one_scale_can_be_set_for_pictures_that_are_shown_side_by_side() -> None:
    positive, mixed = torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0, 2.0]])
    signed, unsigned = Scale(2.0, signed=True), Scale(2.0, signed=False)
    assert torch.equal(coloured(positive, signed)[:, 0, 1], coloured(mixed)[:, 0, 1])
    assert torch.equal(coloured(mixed, unsigned), coloured(positive))
    both = Scale.of(positive, 2 * mixed)
    assert both == Scale(4.0, signed=True)
    assert both.least == -4
    assert torch.equal(coloured(positive, both)[:, 0, 1], coloured(mixed, both)[:, 0, 1])
    image = torch.rand(1, 1, 2)
    assert overlay(image, mixed, limit=2.0).tobytes() == overlay(image, mixed).tobytes()
    assert overlay(image, mixed, limit=4.0).tobytes() != overlay(image, mixed).tobytes()


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_map_or_image_is_one_colour(value: float) -> None:
    got = pixels(overlay(torch.full((1, 4, 4), value), torch.full((2, 2), value)))
    assert (got == got[0, 0]).all()


def test_half_opaque_is_the_mean_of_grey_and_colour() -> None:
    image, heat = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[1.0, 0.0]])
    grey = torch.tensor([[0.0, 1.0]]).expand(3, 1, 2)
    expected = ((grey + coloured(heat)) / 2 * 255).round().permute(1, 2, 0).int()
    assert torch.equal(pixels(overlay(image, heat[None], alpha=0.5)), expected)


def test_the_picture_has_the_size_asked_for() -> None:
    image, heat = torch.rand(3, 6, 5), torch.rand(1, 2, 2)
    assert overlay(image, heat).size == (5, 6)  # PIL's is (width, height)
    assert overlay(image, heat, size=7).size == (7, 7)
    assert overlay(image, heat, size=(9, 4)).size == (4, 9)


def test_a_png_can_be_read_back_and_is_the_same_every_time() -> None:
    picture = to_picture(torch.tensor([[[0.0, 0.5, 1.0, 7.0]]]))
    content = png_bytes(picture)
    assert content == png_bytes(picture)
    assert pixels(Image.open(BytesIO(content))).tolist() == [[0, 128, 255, 255]]
    coloured_one = to_picture(torch.tensor([1.0, 0.0, 0.2]).reshape(3, 1, 1))
    assert pixels(coloured_one).tolist() == [[[255, 0, 51]]]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_of_other_numbers_of_channels_the_mean_is_shown(channels: int) -> None:
    image = torch.zeros(channels, 1, 2)
    image[-1, 0, 1] = 1
    assert pixels(to_picture(image)).tolist() == [[0, round(255 / channels)]]
    assert pixels(stretched(image)).tolist() == [[0, round(255 / channels)]]


def test_what_cannot_be_shown_has_a_typed_error() -> None:
    image, heat = torch.rand(1, 4, 4), torch.rand(2, 2)
    with pytest.raises(InputError, match="heat map has 1 NaN or infinite of 4"):
        overlay(image, torch.tensor([[0.0, torch.nan], [1.0, 2.0]]))
    with pytest.raises(InputError, match="image has 16 NaN"):
        overlay(torch.full((1, 4, 4), torch.inf), heat)
    with pytest.raises(InputError, match=r"alpha=1\.5"):
        overlay(image, heat, alpha=1.5)
    with pytest.raises(InputError, match="limit=-1"):
        overlay(image, heat, limit=-1.0)
    with pytest.raises(InputError, match="size is 0"):
        overlay(image, heat, size=0)
    with pytest.raises(InputError, match=r"\(3, 2, 2\) must be \(h, w\)"):
        overlay(image, torch.rand(3, 2, 2))
