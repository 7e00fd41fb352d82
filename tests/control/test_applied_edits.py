"""What `status` says of edits that meet: the smallest angle between what two maps read."""

import math

import pytest
import torch
from torch import Tensor

from salve_plugin import HookedModel, LowRankMap, edit_at, joint_map, status
from salve_plugin.site import HEAD_INPUT


def smallest_angle(first: Tensor, second: Tensor) -> float:
    """Return by search, in degrees, the least angle between vectors of two spans."""
    draw, best = torch.Generator().manual_seed(0), 0.0
    for _ in range(20):
        vector = first @ torch.randn(first.shape[1], generator=draw, dtype=torch.float64)
        for _ in range(300):  # projected from one span to the other and back until it stays
            for span in (second, first):
                shadow = span @ torch.linalg.lstsq(span, vector[:, None], driver="gelsd").solution
                best = max(best, float(torch.cosine_similarity(vector, shadow[:, 0], dim=0)))
                vector = shadow[:, 0] / shadow.norm().clamp(min=1e-300)
    return math.degrees(math.acos(min(1.0, best)))


def spans() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randn(6, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    return [
        (a, b),
        (a[:, :1], b),
        (a, torch.cat([b[:, :1], a[:, :1] + a[:, 1:]], 1)),
        # Dependent and zero columns span no direction of their own.
        (torch.cat([a[:, :1], 2 * a[:, :1]], 1), b),
        (torch.cat([a[:, :1], 0 * a[:, :1]], 1), torch.eye(6, dtype=torch.float64)[:, 1:3]),
    ]


@pytest.mark.parametrize("case", range(5))
def test_the_angle_is_the_least_between_the_two_spans(tiny: HookedModel, case: int) -> None:
    first, second = spans()[case]
    for read in (first, second):
        edit_at(tiny, HEAD_INPUT, LowRankMap(read, read, torch.zeros(read.shape[1]))).apply_(tiny)
    (overlap,) = status(tiny).overlaps
    assert overlap.angle == pytest.approx(smallest_angle(first, second), abs=1e-4)


def test_a_column_that_repeats_makes_no_shared_subspace(tiny: HookedModel) -> None:
    axes = torch.eye(6, dtype=torch.float64)
    # An orthonormal basis of a span of one direction has no second vector to meet the other span.
    for read in (torch.stack([axes[0], axes[0]], 1), axes[:, 1:3]):
        edit_at(tiny, HEAD_INPUT, LowRankMap(read, read, torch.zeros(2))).apply_(tiny)
    (overlap,) = status(tiny).overlaps
    assert overlap.meeting == "changes add"
    assert overlap.angle == pytest.approx(90)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_a_joint_map_scales_every_reading_once(scale: float) -> None:
    draw = torch.Generator().manual_seed(2)
    maps = [
        LowRankMap(
            torch.randn(6, 2, generator=draw, dtype=torch.float64),
            torch.randn(6, 2, generator=draw, dtype=torch.float64),
            torch.randn(2, generator=draw, dtype=torch.float64),
            scale,
        )
        for _ in range(2)
    ]
    x = torch.randn(5, 6, generator=draw, dtype=torch.float64)
    moved = joint_map(maps).activation(x, 1)
    for part in maps:
        expected = part.offset + scale * (x @ part.read - part.offset)
        torch.testing.assert_close(moved @ part.read, expected)
