"""Products that are the same to the last bit, against exact rational arithmetic."""

from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.control.operators.arithmetic import contracted, outer_sum


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 70), st.integers(1, 4))
def test_products_are_right_to_float64(seed: int, rows: int, length: int, columns: int) -> None:
    left, right = draw(seed, rows, length), draw(seed + 1, columns, length)
    product = contracted(left, right)
    for i in range(rows):
        for j in range(columns):
            terms = [
                Fraction(float(a)) * Fraction(float(b))
                for a, b in zip(left[i], right[j], strict=True)
            ]
            error = abs(Fraction(float(product[i, j])) - sum(terms))
            assert error <= Fraction(2**-50) * sum(map(abs, terms))
    outer = outer_sum(left, draw(seed + 2, columns, length))
    torch.testing.assert_close(outer, left @ draw(seed + 2, columns, length).T)


def test_no_length_and_no_rank_give_zero() -> None:
    assert contracted(draw(0, 2, 0), draw(1, 3, 0)).tolist() == [[0.0] * 3] * 2
    assert outer_sum(draw(0, 2, 0), draw(1, 3, 0)).tolist() == [[0.0] * 3] * 2


def test_bits_depend_neither_on_threads_nor_on_how_many_rows_come_together() -> None:
    left, right = draw(0, 300, 771), draw(1, 5, 771)
    factors = draw(2, 300, 5)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((contracted(left, right), outer_sum(factors, right.T.contiguous())))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    for row in (0, 7, 299):
        assert torch.equal(contracted(left[row : row + 1], right)[0], results[0][0][row])
