"""The product of a coarse and a fine map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import salve_plugin as salve
from salve_plugin.errors import InputError


def maps(seed: int, side: int) -> Tensor:
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 99), factor=st.floats(0.1, 9))
@settings(deadline=None, max_examples=10)
def test_it_is_where_both_are_positive_and_scales_with_each(seed: int, factor: float) -> None:
    coarse, fine = maps(seed, 3), maps(seed + 100, 6)
    product = salve.product_map(coarse, fine)
    assert product.shape == fine.shape
    assert bool((product >= 0).all())
    assert not product[fine <= 0].any()
    torch.testing.assert_close(salve.product_map(factor * coarse, fine), factor * product)
    torch.testing.assert_close(salve.product_map(coarse, factor * fine), factor * product)
    # Where the coarse map is the same everywhere, the fine one is left.
    torch.testing.assert_close(salve.product_map(coarse * 0 + 1, fine), fine.clamp(min=0))


@pytest.mark.usefixtures("untyped")
def test_maps_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 1, 3, 3\) and \(2, 1\) are not of the same"):
        salve.product_map(maps(0, 3), maps(1, 6)[..., 0, 0])
    with pytest.raises(InputError, match=r"\(2, 1, 3, 3\) and \(1, 1, 6, 6\) are not of the same"):
        salve.product_map(maps(0, 3), maps(1, 6)[:1])
