"""The localization benchmark's measures, its pictures and how it says that those are missing."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cutout_classes import ACCEPTED
from benchmarks.cutouts import PACKAGE, Stamps
from benchmarks.localization_parts import drawn
from benchmarks.localization_scores import GRID, Table, on_grid, scores


def rectangle(top: int, left: int, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, GRID, GRID, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


@given(
    place=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    size=st.tuples(st.integers(5, 50), st.integers(5, 50)),
    factor=st.sampled_from([1e-20, 0.1, 1.0, 1e20]),
)
@settings(deadline=None, max_examples=20)
def test_the_mask_itself_is_perfect_and_its_negative_is_not(
    place: tuple[int, int], size: tuple[int, int], factor: float
) -> None:
    mask = rectangle(*place, *size)
    assert scores(factor * mask.float(), mask)[0].tolist() == pytest.approx([1, 1, 1, 1])
    assert scores(factor * (1 - mask.float()), mask)[0].tolist() == pytest.approx([0, 0, 0, 0])
    share = float(mask.float().mean())
    assert float(scores(torch.ones(1, 7, 7), mask)[0, 2]) == pytest.approx(share)


def test_masks_are_put_on_the_grid_by_area() -> None:
    mask = torch.zeros(1, 4 * GRID, 4 * GRID, dtype=torch.bool)
    mask[:, :4, :2], mask[:, :4, 4:5] = True, True  # half of one cell, a quarter of the next
    assert on_grid(mask)[0, 0, :3].tolist() == [True, False, False]


def test_an_arrow_needs_a_difference_that_holds_for_every_animal() -> None:
    stamps = torch.arange(12).repeat_interleave(3)
    noise = torch.rand(36, 4, generator=torch.Generator().manual_seed(0))
    table = Table({"base": noise, "better": noise + 0.1, "same": noise.flip(0)}, stamps)
    base, better, same = table.lines("base", "448")
    assert better.count("↑") == 4
    assert "↑" not in base + same
    assert "↓" not in base + same


def test_parts_lie_where_their_masks_are() -> None:
    images, masks = drawn(20, seed=0)
    inside = masks.any(1)
    assert images[:, 0][inside].mean() > 0.3
    assert abs(float(images[:, 0][~inside].mean())) < 0.05
    assert int(masks.sum(1).max()) == 1  # no two parts overlap


def test_missing_pictures_are_named_with_their_package(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"{len(ACCEPTED)} of the 76.*Debian package {PACKAGE}"):
        Stamps(tmp_path)
