"""The k largest of each row, against torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.discover.kernels.selection import greater, largest, true_places


@given(
    n_rows=st.integers(0, 4),
    n=st.integers(1, 300),
    k=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=80, derandomize=True)
def test_the_values_are_torchs_and_stand_where_the_columns_say(
    n_rows: int, n: int, k: int, seed: int
) -> None:
    rows = torch.randn(n_rows, n, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    k = min(k, n)
    values, columns = largest(rows, k)
    expected = rows.topk(k, dim=1).values
    torch.testing.assert_close(values.sort(1, descending=True).values, expected, rtol=0, atol=0)
    assert torch.equal(rows.gather(1, columns), values)
    assert all(len(set(line)) == k for line in columns.tolist())


@pytest.mark.parametrize(("n", "k"), [(512, 32), (2048, 32), (8192, 32), (256, 8), (96, 3)])
def test_sizes_that_are_dealt_out_to_groups(n: int, k: int) -> None:
    rows = torch.randn(5, n, generator=torch.Generator().manual_seed(n))
    values, columns = largest(rows, k)
    assert torch.equal(values.sort(1, descending=True).values, rows.topk(k, dim=1).values)
    assert torch.equal(rows.gather(1, columns), values)


def test_bfloat16_and_nan_are_taken_as_torch_takes_them() -> None:
    rows = torch.randn(5, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    values, columns = largest(rows, 32)
    assert values.dtype == torch.bfloat16
    assert torch.equal(values.sort(1, descending=True).values, rows.topk(32, dim=1).values)
    assert torch.equal(rows.gather(1, columns), values)
    rows[2, 100] = torch.nan
    values, columns = largest(rows, 32)
    assert values[2].isnan().sum() == 1
    assert 100 in columns[2].tolist()


@given(
    n_rows=st.integers(0, 5),
    n=st.integers(1, 40),
    share=st.floats(0, 1),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_places_of_true_are_torchs(
    n_rows: int, n: int, share: float, transposed: bool, seed: int
) -> None:
    mask = torch.rand(n_rows, n, generator=torch.Generator().manual_seed(seed)) < share
    mask = mask.T if transposed else mask
    assert torch.equal(true_places(mask), mask.flatten().nonzero().flatten())


@pytest.mark.parametrize("bound", [0.0, 0.5, None])
def test_what_is_greater_than_a_bound_is_torchs(bound: float | None) -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 9, generator=random).round(decimals=1)
    rows[0, 0], rows[1, 1], rows[2, 2] = torch.nan, torch.inf, 0.5
    limit = torch.randn(9, generator=random).round(decimals=1) if bound is None else bound
    assert torch.equal(greater(rows, limit), rows > limit)
