"""The causal check of a map: planted regions fall, random ones do not, and its p is honest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin.demo import digits
from salve_plugin.errors import InputError
from salve_plugin.validate.evidence.blurring import MapCheck, blurred, marked

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="module")
def study(
    digits_test: digits.Split, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Tensor]:
    """A network, a dictionary of its head's input, and images; nothing here changes them."""
    hooked = salve.attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    few = digits.Split(digits_test.images[:80], digits_test.labels[:80])
    folder = tmp_path_factory.mktemp("study") / "recording"
    acts = salve.record(hooked, few.batches(), folder=folder, progress=False)
    dictionary = salve.fit(acts, n_latents=12, steps=30)
    return hooked, dictionary, few.images


def test_the_marked_region_is_the_largest_share_of_the_map() -> None:
    heat = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = marked(heat, (4, 5), 0.2)
    assert mask.sum((1, 2, 3)).tolist() == [4, 4, 4]
    for row in range(3):
        assert float(heat[row][mask[row]].min()) > float(heat[row][~mask[row]].max())


def test_the_blur_is_a_weighted_mean_of_pixels() -> None:
    images = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    smooth = blurred(images)
    torch.testing.assert_close(blurred(torch.ones(1, 1, 9, 9)), torch.ones(1, 1, 9, 9))
    assert float(smooth.std()) < float(images.std()) / 2
    assert float(smooth.max()) <= float(images.max())
    # By hand, at one pixel: weights are the same for every channel, and add up to 1.
    down, right = (
        torch.softmax(-0.5 * ((torch.arange(n) - at) / 1.5).square(), 0)
        for n, at in ((16, 0), (12, 7))
    )
    expected = torch.einsum("h,w,chw->c", down, right, images[1])
    torch.testing.assert_close(smooth[1, :, 0, 7], expected)


def test_a_fall_is_what_a_forward_pass_of_the_blurred_image_says(
    study: tuple[Any, Any, Tensor],
) -> None:
    hooked, dictionary, images = study
    images, targets = images[:4], [3, 3, 0, 7]
    check = salve.map_check(hooked, dictionary, images, targets, regions=3)
    heat = salve.LayerGradFam.of(hooked, dictionary).attribute(images, target=targets)
    mixed = torch.where(marked(heat, (32, 32), 0.2), blurred(images), images)
    with torch.no_grad():
        rows = [hooked.run_with_cache(x)[1]["unembed.hook_in"] for x in (images, mixed)]
        before, after = (
            dictionary.pre_activation(x)[torch.arange(4), targets].double() for x in rows
        )
    torch.testing.assert_close(check.before, before)
    torch.testing.assert_close(check.fall, before - after)
    assert check.falls_elsewhere.shape == (4, 3)
    again = salve.map_check(hooked, dictionary, images, targets, heat=heat, regions=3)
    assert torch.equal(again.fall, check.fall)
    assert torch.equal(again.falls_elsewhere, check.falls_elsewhere)
    assert "fall elsewhere" in str(check)
    assert "4 images" in repr(check)


def test_p_is_small_where_the_map_matters_and_uniform_where_it_does_not() -> None:
    def check(shift: float, seed: int) -> float:
        falls = torch.randn(6, 20, generator=torch.Generator().manual_seed(seed)).double()
        zeros = torch.zeros(6, dtype=torch.int64)
        return MapCheck(zeros, falls[:, 0], falls[:, 0] + shift, falls[:, 1:], 0.2).p

    assert check(5, 0) == 0.05
    p = torch.tensor([check(0, seed) for seed in range(300)])
    assert float((p <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.03)
    assert float((p <= 0.5).double().mean()) == pytest.approx(0.5, abs=0.08)


def test_random_maps_are_rarely_significant(study: tuple[Any, Any, Tensor]) -> None:
    hooked, dictionary, images = study
    p = []
    for seed in range(12):
        heat = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        check = salve.map_check(hooked, dictionary, images[:2], 3, heat=heat, regions=9, seed=seed)
        p.append(check.p)
    assert sum(each <= 0.1 for each in p) <= 4  # 1.2 expected
    assert sum(each <= 0.5 for each in p) in range(2, 11)


def test_arguments_out_of_range_are_refused(study: tuple[Any, Any, Tensor]) -> None:
    hooked, dictionary, images = study
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: salve.map_check(hooked, dictionary, images, 0, area=1.0), "area 1"),
        (
            lambda: salve.map_check(hooked, dictionary, images, 0, regions=0),
            "regions is 0; at least 1",
        ),
        (lambda: salve.map_check(hooked, dictionary, images[:2], 99), "out of range"),
        (
            lambda: salve.map_check(hooked, dictionary, images, 0, heat=torch.ones(2, 1, 4, 4)),
            "maps of shape",
        ),
        (
            lambda: salve.map_check(hooked, dictionary, images[:0], 0, heat=torch.ones(0, 1, 4, 4)),
            "at least one image",
        ),
        (
            lambda: salve.map_check(
                hooked, dictionary, images[:1], 0, heat=torch.full((1, 1, 4, 4), torch.nan)
            ),
            "maps hold 16 NaN",
        ),
    ]
    for call, complaint in refused:
        with pytest.raises(InputError, match=complaint):
            call()


@pytest.mark.usefixtures("untyped")
def test_a_stage_that_is_none_is_refused_with_maps_of_the_callers_own(
    study: tuple[Any, Any, Tensor],
) -> None:
    hooked, dictionary, images = study
    heat: Any = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    stage: Any = "code"
    with pytest.raises(InputError, match="stage 'code' is unknown; use 'pre' or 'post'"):
        salve.map_check(hooked, dictionary, images[:2], 1, heat=heat, stage=stage)
