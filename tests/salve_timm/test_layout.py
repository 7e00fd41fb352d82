"""Layouts read off shapes."""

import pytest

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
