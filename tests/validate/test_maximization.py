"""Activation maximization: it climbs, it repeats itself, it leaves the model alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.errors import AttributionError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT, Layout, Site
from salve_plugin.validate.maximization import maximize
from salve_plugin.validate.parametrization import (
    Parametrization,
    image_of,
    shifted,
    start,
    total_variation,
)

DIGITS = {"in_chans": 1, "input_size": [1, 32, 32], "mean": [0.3], "std": [0.37]}


def affine(site: Site, encoder: Tensor) -> Dictionary:
    tensors = {
        "encoder_weight": encoder,
        "encoder_bias": torch.zeros(len(encoder)),
        "atoms": nn.functional.normalize(encoder),
        "decoder_bias": torch.zeros(encoder.shape[1]),
    }
    return Dictionary(tensors, create("l1", {}), site)


def with_head_rows(model: Any, head: str, **description: object) -> tuple[HookedModel, Dictionary]:
    """Attach a trained network with its own classifier's rows as the dictionary."""
    weight = model.get_submodule(head).weight.detach()
    site = Site(HEAD_INPUT, head, "in", "pooled", weight.shape[1], readers=(head,))
    hooked = HookedModel(model, [site], attribution_site=None, description=DIGITS | description)
    return hooked, affine(site, weight)


def latents(hooked: HookedModel, dictionary: Dictionary, images: Tensor, latent: int) -> Tensor:
    head = hooked.model.get_submodule(dictionary.site.module)
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        hooked.model(images)
    handle.remove()
    result: Tensor = dictionary.pre_activation(seen[0])[:, latent]
    return result


def scrambled(image: Tensor, count: int) -> Tensor:
    """Return images with the amplitudes of `image` at every frequency and random phases."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(count, *image.shape, generator=generator)
    phase = torch.fft.rfft2(noise).angle()
    phase[..., 0, 0] = torch.fft.rfft2(image).angle()[..., 0, 0]
    amplitude = torch.fft.rfft2(image).abs().expand_as(phase)
    images: Tensor = torch.fft.irfft2(torch.polar(amplitude, phase), s=image.shape[1:])
    return images


@pytest.mark.parametrize(
    ("network", "parametrization"),
    [("resnet", "fourier"), ("vit", "fourier"), ("vit", "pixel")],
)
def test_it_climbs_far_above_its_start_and_any_noise_of_the_same_spectrum(
    request: pytest.FixtureRequest, network: str, parametrization: Parametrization
) -> None:
    model = request.getfixturevalue(f"digits_{network}")
    hooked, dictionary = with_head_rows(model, "fc" if network == "resnet" else "head")
    result = maximize(hooked, dictionary, 3, steps=40, parametrization=parametrization)
    spread = result.noise.std()
    assert result.activation > result.activations[0] + 2 * spread
    assert result.activation > result.noise.max() + spread
    control = latents(hooked, dictionary, scrambled(result.model_input, 32), 3)
    assert result.activation > control.max() + spread
    seen = latents(hooked, dictionary, result.model_input[None], 3)
    torch.testing.assert_close(result.activation, float(seen), rtol=1e-5, atol=1e-5)

    assert result.image.shape == (1, 32, 32)
    assert 0 <= result.image.min() < result.image.max() <= 1
    assert result.low.item() == pytest.approx(-0.3 / 0.37)
    assert result.high.item() == pytest.approx(0.7 / 0.37)
    assert len(result.activations) == 40


def test_the_negative_pole_goes_the_other_way(digits_vit: Any) -> None:
    hooked, dictionary = with_head_rows(digits_vit, "head")
    result = maximize(hooked, dictionary, 3, steps=30, sign=-1)
    assert result.activation < result.noise.min()


def test_one_seed_gives_one_image_and_leaves_chance_and_the_model_alone(digits_vit: Any) -> None:
    hooked, dictionary = with_head_rows(digits_vit, "head")
    digits_vit.blocks[1].train()
    digits_vit.head.weight.grad = torch.ones_like(digits_vit.head.weight)
    modes = [module.training for module in digits_vit.modules()]
    weights = [parameter.clone() for parameter in digits_vit.parameters()]
    chance = torch.random.get_rng_state()

    first = maximize(hooked, dictionary, 1, steps=3, seed=7)
    with torch.inference_mode():
        second = maximize(hooked, dictionary, 1, steps=3, seed=7)
    other = maximize(hooked, dictionary, 1, steps=3, seed=8)

    assert torch.equal(first.image, second.image)
    assert torch.equal(first.activations, second.activations)
    assert not torch.equal(first.image, other.image)
    assert torch.equal(first.noise, other.noise)
    assert not first.image.requires_grad
    assert torch.equal(chance, torch.random.get_rng_state())
    assert [module.training for module in digits_vit.modules()] == modes
    assert all(map(torch.equal, weights, digits_vit.parameters()))
    with_grad = [name for name, p in digits_vit.named_parameters() if p.grad is not None]
    assert with_grad == ["head.weight"]
    assert all(p.requires_grad for p in digits_vit.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in digits_vit.modules())


class Brightness(nn.Module):
    """Its activation, of any layout, holds red minus blue and the mean."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout, self.site = layout, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([x[:, 0] - x[:, 2], x.mean(1)], 1)
        result: Tensor = self.site(
            {
                "nchw": maps,
                "nhwc": maps.permute(0, 2, 3, 1),
                "tokens": maps.flatten(2).transpose(1, 2),
                "pooled": maps.mean((2, 3)),
            }[self.layout]
        )
        return result


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens", "pooled"])
def test_a_site_of_any_layout_is_maximized_in_its_mean_over_positions(layout: Layout) -> None:
    site = Site("here", "site", "out", layout, 2)
    hooked = HookedModel(Brightness(layout), [site], attribution_site=None, description={})
    options: Any = {"size": (3, 8, 8), "low": [0.0, 0.0, 0.0], "high": 1.0, "tv_weight": 0.0}
    redder = maximize(hooked, affine(site, torch.eye(2)), 0, **options)
    red, _, blue = redder.image.mean((1, 2))
    assert red > blue + 0.2
    assert redder.activation == pytest.approx(float(red - blue), abs=1e-5)
    brighter = maximize(hooked, affine(site, torch.eye(2)), 1, **options)
    assert brighter.image.mean() > 0.8


def test_total_variation_smooths_the_image(digits_vit: Any) -> None:
    hooked, dictionary = with_head_rows(digits_vit, "head")
    smooth, rough = (
        maximize(hooked, dictionary, 3, steps=30, tv_weight=weight) for weight in (30.0, 0.0)
    )
    assert total_variation(smooth.image) < total_variation(rough.image) / 1.5


def test_a_model_with_nan_is_reported_with_the_step(digits_vit: Any) -> None:
    hooked, dictionary = with_head_rows(digits_vit, "head")
    with torch.no_grad():
        digits_vit.norm.weight[0] = torch.nan
    with pytest.raises(AttributionError, match="step 0"):
        maximize(hooked, dictionary, 0, steps=2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in digits_vit.modules())


def test_a_latent_without_variance_leaves_a_finite_image(digits_vit: Any) -> None:
    hooked, dictionary = with_head_rows(digits_vit, "head")
    with torch.no_grad():
        dictionary.get_parameter("encoder_weight").zero_()
    assert maximize(hooked, dictionary, 0, steps=3).image.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 10}, "the latents are 0 to 9"),
        ({"size": 0}, "a side of size is 0; at least 1"),
        ({"size": "a"}, "a side of size is 'a'; expected an integer"),
        ({"size": (1, 2, 3, 4)}, r"size \(1, 2, 3, 4\) must be the side, \(height, width\) or"),
        ({"jitter": -1}, "jitter is -1; at least 0"),
        ({"jitter": 0.5}, "jitter is 0.5; expected an integer"),
        ({"low": 1.0, "high": 1.0}, "below"),
        ({"low": [0.0, 0.0]}, "one for each of 1"),
        ({"steps": -1}, "steps is -1; at least 0"),
        ({"steps": 1.5}, "steps is 1.5; expected an integer"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_an_argument_that_cannot_be_used_is_named(
    digits_vit: Any, options: dict[str, Any], message: str
) -> None:
    hooked, dictionary = with_head_rows(digits_vit, "head")
    with pytest.raises(InputError, match=message):
        maximize(hooked, dictionary, **({"latent": 0} | options))


def test_without_a_described_size_it_asks_for_one(digits_vit: Any) -> None:
    hooked, dictionary = with_head_rows(digits_vit, "head", input_size=None, in_chans=None)
    with pytest.raises(InputError, match="pass size="):
        maximize(hooked, dictionary, 0)
    assert maximize(hooked, dictionary, 0, size=32, steps=1).image.shape == (1, 32, 32)


def test_a_fourier_start_has_a_one_over_f_spectrum_and_the_contrast_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    paint = image_of("fourier", (1, 64, 64))
    images = torch.stack([paint(start("fourier", (1, 64, 64), generator)) for _ in range(100)])
    before_squashing = images.logit()
    # The lowest frequencies, which hold most of the variance, are few: hence the tolerance.
    assert before_squashing.std().item() == pytest.approx(0.3, rel=0.1)
    amplitude = torch.fft.rfft2(before_squashing).abs().square().mean((0, 1)).sqrt()
    at = torch.tensor([2, 4, 8, 16])
    for line in (amplitude[0, at], amplitude[at, 0], amplitude[at, at]):
        ratios = line / line[0] * at / 2
        torch.testing.assert_close(ratios, torch.ones(4), rtol=0.25, atol=0)


@given(st.lists(st.floats(-3, 3), min_size=24, max_size=24))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_total_variation_equals_a_loop(values: Sequence[float]) -> None:
    image = torch.tensor(values, dtype=torch.float64).reshape(2, 3, 4)
    down = [
        abs(image[c, y + 1, x] - image[c, y, x])
        for c in range(2) for y in range(2) for x in range(4)
    ]  # fmt: skip
    across = [
        abs(image[c, y, x + 1] - image[c, y, x])
        for c in range(2) for y in range(3) for x in range(3)
    ]  # fmt: skip
    expected = sum(down) / 16 + sum(across) / 18
    torch.testing.assert_close(total_variation(image), torch.as_tensor(expected))


def test_a_shift_moves_every_pixel_by_the_same_offset_and_loses_none() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.arange(64.0).reshape(1, 8, 8)
    offsets = set()
    for _ in range(200):
        moved = shifted(image, 2, generator)
        y, x = divmod(int(moved.flatten().argmin()), 8)
        assert torch.equal(moved.roll((-y, -x), (1, 2)), image)
        offsets.add(((y + 2) % 8 - 2, (x + 2) % 8 - 2))
    assert offsets == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_the_colours_of_an_image_of_three_channels_vary_together() -> None:
    generator = torch.Generator().manual_seed(0)
    paint = image_of("fourier", (3, 32, 32))
    rgb = torch.cat([paint(start("fourier", (3, 32, 32), generator)).flatten(1)] * 1, 1).logit()
    assert torch.corrcoef(rgb)[0, 1] > 0.5


def test_images_of_one_row_are_made_too() -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(3, 1, 5, generator=random)
    expected = image.diff(dim=2).abs().mean()
    torch.testing.assert_close(total_variation(image), expected)
    torch.testing.assert_close(total_variation(image.movedim(2, 1)), expected)
    assert total_variation(image[:, :, :1]) == 0
