"""The box that a map points at, against a search by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.crops import Box, pointed_at


def by_hand(heat: Tensor, level: float) -> set[tuple[int, int]]:
    """Walk from the peak to neighbours that are strong enough."""
    height, width = heat.shape
    start = divmod(int(heat.argmax()), width)
    reached, open_ = {start}, [start]
    while open_:
        row, column = open_.pop()
        for near in [(row + a, column + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
            inside = 0 <= near[0] < height and 0 <= near[1] < width
            if inside and near not in reached and heat[near] >= level * float(heat.max()):
                reached.add(near)
                open_.append(near)
    return reached


@settings(deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40),
    st.floats(0.05, 1), st.integers(0, 2**31),
)  # fmt: skip
def test_the_box_holds_the_cells_that_a_walk_from_the_peak_reaches(
    rows: int, columns: int, height: int, width: int, level: float, seed: int
) -> None:
    heat = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) + 0.01
    box = pointed_at(heat, (height, width), level=level)
    cells = by_hand(heat, level)
    first, last = (f(cell[0] for cell in cells) for f in (min, max))
    left, right = (f(cell[1] for cell in cells) for f in (min, max))
    assert box is not None
    # The box in units of cells, less than a pixel beyond them on each side.
    assert 0 <= first * height / rows - box.top < 1
    assert -1e-9 <= box.bottom - (last + 1) * height / rows < 1
    assert 0 <= left * width / columns - box.left < 1
    assert -1e-9 <= box.right - (right + 1) * width / columns < 1
    assert 0 <= box.top < box.bottom <= height
    assert 0 <= box.left < box.right <= width
    image = torch.zeros(3, height, width)
    part = box.of(image)
    assert part.shape == (3, box.bottom - box.top, box.right - box.left)
    assert part.numel()


def test_no_rounding_leads_beyond_the_image() -> None:
    for cells in range(1, 32):
        heat = torch.zeros(cells, 1)
        heat[-1] = 1.0
        for pixels in range(1, 64):
            box = pointed_at(heat, (pixels, 1))
            assert box == Box((cells - 1) * pixels // cells, 0, pixels, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_smallest_peak_is_one_in_every_type(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    heat = torch.zeros(4, 4, dtype=dtype)
    heat[1, 2] = smallest
    assert float(heat[1, 2]) > 0
    assert pointed_at(heat, (8, 8), level=0.4) == Box(2, 4, 4, 6)


def test_a_second_peak_elsewhere_is_left_out() -> None:
    heat = torch.zeros(5, 5)
    heat[0, 0], heat[0, 1], heat[4, 4] = 1.0, 0.6, 0.9
    assert pointed_at(heat, (50, 50)) == Box(0, 0, 10, 20)
    heat[1, 2], heat[2, 3], heat[3, 3] = 0.5, 0.5, 0.5  # now corners lead there
    assert pointed_at(heat, (50, 50)) == Box(0, 0, 50, 50)


def test_a_map_without_anything_positive_points_at_nothing() -> None:
    assert pointed_at(-torch.rand(3, 3), (6, 6)) is None
    assert pointed_at(torch.zeros(3, 3), (6, 6)) is None


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(0, 3\) is no grid"):
        pointed_at(torch.rand(0, 3), (6, 6))
    with pytest.raises(InputError, match="NaN"):
        pointed_at(torch.full((2, 2), torch.nan), (6, 6))
    with pytest.raises(InputError, match="level 0"):
        pointed_at(torch.rand(2, 2), (6, 6), level=0.0)
