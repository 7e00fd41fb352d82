"""Zeroed rows and columns: exactly zero, in any precision, and exactly undone."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_updates import draw

from salve_plugin import HookedModel, zero_row
from salve_plugin.control.writers.layer import head_of, layer_at
from salve_plugin.control.writers.zeroing import zeroed_inputs, zeroed_outputs
from salve_plugin.errors import InputError


def test_the_row_is_zero_and_the_bias_stays(digits_hooked: HookedModel) -> None:
    edit = zero_row(digits_hooked, 3)
    assert edit.provenance.kind == "written"
    bias = digits_hooked.unembed()[1]
    with edit.applied(digits_hooked):
        weight, same = digits_hooked.unembed()
    assert not bool(weight[3].any())
    assert torch.equal(same, bias)
    rest = [row for row in range(10) if row != 3]
    assert torch.equal(weight[rest], digits_hooked.unembed()[0][rest])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**20),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.sets(st.integers(0, 5), min_size=1, max_size=6),
    st.sets(st.integers(0, 3), min_size=1, max_size=3),
)
def test_zero_is_zero_and_the_rest_keeps_its_bits(
    with_head: Callable[..., HookedModel],
    seed: int,
    dtype: torch.dtype,
    columns: set[int],
    rows: set[int],
) -> None:
    # 0.1 and the like, which no binary number is: w + (-w) leaves nothing all the same.
    weight, bias = (draw(seed, 4, 6) * 10).round() / 10, draw(seed + 1, 4)
    hooked = with_head(weight.to(dtype), bias.to(dtype))
    before, head = hooked.unembed()[0], head_of(hooked)
    for edit, expected in [
        (
            zeroed_inputs(head, sorted(columns), "columns"),
            before.index_fill(1, torch.tensor(sorted(columns)), 0),
        ),
        (
            zeroed_outputs(head, sorted(rows), "rows", bias=True),
            before.index_fill(0, torch.tensor(sorted(rows)), 0),
        ),
    ]:
        with edit.applied(hooked):
            after = hooked.unembed()
        torch.testing.assert_close(after[0], expected, rtol=0, atol=0)
        assert torch.equal(hooked.unembed()[0], before)
        if edit.operator.moves_origin:
            assert not bool(after[1][sorted(rows)].any())


def test_columns_of_some_rows_only(tiny: HookedModel) -> None:
    before = tiny.unembed()[0]
    edit = zeroed_inputs(head_of(tiny), [1, 4], "columns", rows=[0, 2])
    with edit.applied(tiny):
        after = tiny.unembed()[0]
    expected = before.clone()
    expected[0, [1, 4]] = expected[2, [1, 4]] = 0
    assert torch.equal(after, expected)


def test_a_layer_is_named_where_several_read_a_site(tiny: HookedModel) -> None:
    assert layer_at(tiny, "both", "side").shape == (5, 6, 1, 1)
    with pytest.raises(InputError, match="name one"):
        layer_at(tiny, "both")
    with pytest.raises(InputError, match="does not read"):
        layer_at(tiny, "both", "body")


def test_a_class_that_is_none_is_named(tiny: HookedModel) -> None:
    with pytest.raises(InputError, match="label 7 is no class"):
        zero_row(tiny, 7)
