"""Whether tensors are the same to the bit, and rows as indices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.control.rows import same_bits

KINDS = {
    torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32,
    torch.float64: torch.int64,
}  # fmt: skip


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.sampled_from([*KINDS]), st.integers(0, 70), st.integers(0, 63), st.integers(0, 10**6))
def test_one_flipped_bit_anywhere_is_seen(
    dtype: torch.dtype, size: int, bit: int, seed: int
) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    other = tensor.clone()
    assert same_bits(tensor, other)
    if size:
        words = other.view(KINDS[dtype])
        words[seed % size] ^= torch.tensor(1).to(words.dtype) << (bit % (8 * words.element_size()))
        assert not same_bits(tensor, other)


@pytest.mark.parametrize("dtype", [*KINDS])
def test_zeros_differ_by_their_sign_and_nan_is_itself(dtype: torch.dtype) -> None:
    zero, nan = torch.zeros(3, dtype=dtype), torch.full((3,), torch.nan, dtype=dtype)
    assert not same_bits(zero, -zero)
    assert same_bits(nan, nan.clone())


def test_shapes_dtypes_and_strides() -> None:
    square = torch.arange(6.0).reshape(2, 3)
    assert same_bits(square.T.contiguous().T, square)
    assert not same_bits(square, square.reshape(3, 2))
    assert not same_bits(square, square.double())
