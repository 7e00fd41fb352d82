"""Regions beside segments: plain loops, planted parts, and what no scale may change."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional

from salve_plugin.errors import InputError
from salve_plugin.validate.evidence import dissection
from salve_plugin.validate.evidence.dissection import GRID, dissect, masks_on_grid


def drawn(seed: int, images: int = 40, latents: int = 4) -> tuple[Tensor, Tensor]:
    """Return maps and masks of a few blocks, with a share of zeros."""
    random = torch.Generator().manual_seed(seed)
    maps = torch.randn(images, latents, 6, 5, generator=random)
    blocks = torch.randint(0, 4, (images, 7, 8), generator=random)
    blocks[:, :4] = 0
    blocks[0, 0, 0] = 1
    return maps, masks_on_grid(list(blocks.repeat_interleave(3, 1)), images)


def test_every_number_is_that_of_plain_loops() -> None:
    maps, masks = drawn(0)
    result = dissect(lambda: maps, masks, None, seed=3)
    partners = dissection._partners(
        torch.stack([torch.bincount(mask.flatten(), minlength=4) > 0 for mask in masks]), 3
    )
    for latent in range(4):
        values = maps[:, latent].flatten().sort(descending=True).values
        level = 0.999999 * float(values[-(-len(values) // 200) - 1])
        regions = [
            functional.interpolate(
                one[None, None], (GRID, GRID), mode="bilinear", align_corners=False
            )[0, 0]
            >= level
            for one in maps[:, latent]
        ]
        best = []
        for shuffle in range(-1, dissection.SHUFFLES):
            shares = []
            for segment in (1, 2, 3):
                both = 0
                own, orders = partners[segment]
                for at, image in enumerate(own.tolist()):
                    other = image if shuffle < 0 else int(orders[shuffle, at])
                    both += int((regions[image] & (masks[other] == segment)).sum())
                whole = sum(int(one.sum()) for one in regions) + int((masks == segment).sum())
                shares.append(both / (whole - both))
            best.append(max(shares))
            if shuffle < 0:
                assert int(result.segment[latent]) == 1 + shares.index(max(shares))
        assert float(result.iou[latent]) == pytest.approx(best[0])
        nulls = sorted(best[1:])
        assert float(result.iou_null[latent]) == pytest.approx(nulls[-1])  # the 95 % of 19
        as_good = sum(one >= best[0] - 1e-9 for one in nulls)
        assert float(result.iou_p[latent]) == pytest.approx((1 + as_good) / 20)


def test_a_part_that_a_latent_follows_is_named_and_its_neighbour_is_chance() -> None:
    random = torch.Generator().manual_seed(0)
    blocks = torch.zeros(60, 8, 8, dtype=torch.long)
    maps = torch.zeros(60, 3, 8, 8)
    for image in range(60):
        for segment in (1, 2):
            down, right = torch.randint(0, 7, (2,), generator=random).tolist()
            blocks[image, down : down + 2, right : right + 2] = segment
        maps[image, 0][blocks[image] == 2] = 1.0
        down, right = torch.randint(0, 8, (2,), generator=random).tolist()
        maps[image, 1, down, right] = 1.0
    result = dissect(lambda: maps, masks_on_grid(list(blocks), 60), ("wheel", "door"), seed=0)
    assert result.name(0) == "door"
    assert float(result.iou[0]) > 0.35  # enlarged, only the middle of a part is at its maximum
    assert float(result.iou_null[0]) < 0.1
    assert result.iou_p.tolist()[0] == 0.05
    assert float(result.iou[1]) < 0.1
    assert float(result.iou_p[1]) > 0.05
    assert result.name(2) is None  # it is off everywhere
    assert bool(result.iou[2].isnan())


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100.0))
def test_scale_and_order_of_the_latents_change_nothing(seed: int, factor: float) -> None:
    maps, masks = drawn(seed)
    plain = dissect(lambda: maps, masks, None, seed)
    assert float(plain.iou.min()) >= 0
    assert float(plain.iou.max()) <= 1
    turned = dissect(lambda: factor * maps.flip(1), masks, None, seed)
    torch.testing.assert_close(turned.iou.flip(0), plain.iou)
    torch.testing.assert_close(turned.iou_p.flip(0), plain.iou_p)
    assert torch.equal(turned.segment.flip(0), plain.segment)


def test_latents_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = drawn(1)

    def streamed() -> Iterator[Tensor]:
        yield from maps

    whole = dissect(streamed, masks, None, 0)
    monkeypatch.setattr(dissection, "_LATENTS", 3)
    parts = dissect(streamed, masks, None, 0)
    assert torch.equal(whole.iou, parts.iou)
    assert torch.equal(whole.iou_null, parts.iou_null)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([torch.zeros(4, 4).long()], "1 masks for 2 recorded images"),
        ([torch.zeros(4, 4)] * 2, "whole numbers"),
        ([torch.zeros(1, 4, 4).long()] * 2, r"mask of image 0 is torch.int64 \(1, 4, 4\)"),
        ([torch.full((4, 4), -1)] * 2, "from 0"),
        ([torch.zeros(4, 4, dtype=torch.complex64)] * 2, "whole numbers"),
        ([Image.new("L", (4, 4))] * 2, "the mask of image 0 is a Image; expected a tensor"),
    ],
)
def test_what_is_no_mask_is_refused(masks: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        masks_on_grid(masks, 2)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.int16, np.int64, np.bool_])
def test_masks_may_be_of_any_whole_numbers(kind: Any) -> None:
    mask = np.eye(GRID).astype(kind)
    assert torch.equal(masks_on_grid([mask], 1)[0].long(), torch.eye(GRID).long())


def test_masks_without_a_segment_or_a_name_for_one_are_refused() -> None:
    maps, masks = drawn(0)
    with pytest.raises(InputError, match="number 0"):
        dissect(lambda: maps, torch.zeros_like(masks), None, 0)
    with pytest.raises(InputError, match="a name for each"):
        dissect(lambda: maps, masks, ("one",), 0)
