"""Moments against their definition, and the shrinkage against scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS

from salve_plugin import SalveError
from salve_plugin.control.erasers import JointMoments, oas_shrinkage


def _data(seed: int, n: int = 40, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=draw) * 3 + 100
    return x, torch.randn(n, 2, generator=draw)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 38))
def test_equal_the_definition_however_the_rows_are_cut(seed: int, cut: int) -> None:
    x, z = _data(seed)
    moments = JointMoments.of([(x[:cut], z[:cut]), (x[cut:], z[cut:])])
    both = np.cov(torch.cat([x, z], 1).double().numpy().T, bias=True)
    torch.testing.assert_close(moments.xx, torch.from_numpy(both[:5, :5]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.xz, torch.from_numpy(both[:5, 5:]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.zz, torch.from_numpy(both[5:, 5:]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.x_mean, x.double().mean(0))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_blocks_merge_to_the_whole(seed: int) -> None:
    x, z = _data(seed)
    block = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(seed))
    block[0] = 3  # a block of a single row
    block[1:7] = torch.tensor([0, 1, 2, 0, 1, 2])
    block[7:] = block[7:].clamp(max=2)
    merged = JointMoments.merged(JointMoments.of_blocks([(x, z, block)], 4))
    whole = JointMoments.of([(x, z)])
    assert merged.n_rows == whole.n_rows
    for name in ("x_mean", "z_mean", "xx", "xz", "zz"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_a_row_of_weight_two_counts_as_two_rows(seed: int) -> None:
    x, z = _data(seed)
    times = torch.randint(1, 4, (40,), generator=torch.Generator().manual_seed(seed))
    weighted = JointMoments.of([(x[:9], z[:9], times[:9]), (x[9:], z[9:], times[9:])])
    repeated = JointMoments.of([(x.repeat_interleave(times, 0), z.repeat_interleave(times, 0))])
    for name in ("x_mean", "z_mean", "xx", "xz", "zz"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name))
    assert weighted.n_rows <= 40


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 60), width=st.integers(2, 12))
def test_shrinkage_is_that_of_scikit_learn(seed: int, n: int, width: int) -> None:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).double()
    x = x * torch.arange(1, width + 1)
    moments = JointMoments.of([(x, x[:, :1])])
    reference = OAS().fit(x.numpy())
    assert oas_shrinkage(moments.xx, float(n)) == pytest.approx(reference.shrinkage_, rel=1e-9)
    expected = torch.from_numpy(reference.covariance_)
    torch.testing.assert_close(moments.covariance(None), expected)


@pytest.mark.parametrize(
    "parts", [[], [(torch.ones(1, 2), torch.ones(1, 1))],
              [(torch.full((3, 2), torch.nan), torch.ones(3, 1))],
              [(torch.ones(3, 2), torch.ones(2, 1))]],
)  # fmt: skip
def test_refuses_what_has_no_covariance(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with pytest.raises(SalveError):
        JointMoments.of(parts)
