"""The scale operator against Eq. 1, computed by hand and in float64."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from salve_plugin.control.operators import Gate, Mode, multiplier, product, scaled, scaled_weight
from salve_plugin.errors import InputError

UNIT = torch.tensor([0.6, -0.8, 0.0])
EXACT = torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64)


def test_the_multiplier_is_the_clamped_line_of_the_paper() -> None:
    assert multiplier(EXACT, 1.25).tolist() == [0.25, 0.0, 1.0]
    assert multiplier(EXACT, 5.0).tolist() == [0.0, 0.0, 1.0]
    assert multiplier(EXACT, 5.0, "enhance").tolist() == [4.0, 5.0, 1.0]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 100), st.sampled_from(["suppress", "enhance"]))
def test_scaled_weight_is_the_definition_entry_by_entry(
    seed: int, strength: float, mode: Mode
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    c = nn.functional.normalize(torch.randn(5, generator=draw, dtype=torch.float64), dim=0)
    sign = -1 if mode == "suppress" else 1
    for i in range(3):
        for j in range(5):
            expected = weight[i, j] * max(0.0, 1 + sign * strength * abs(float(c[j])))
            found = scaled_weight(weight, c, strength, mode=mode)[i, j]
            assert float(found) == pytest.approx(float(expected), rel=1e-14, abs=1e-300)


def test_strength_zero_changes_no_bit() -> None:
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled_weight(weight, UNIT, 0.0), weight)


def test_only_named_rows_change_and_the_input_stays() -> None:
    weight = torch.ones(3, 3)
    edited = scaled_weight(weight, UNIT, 1.0, rows=[1])
    assert torch.equal(weight, torch.ones(3, 3))
    assert torch.equal(edited[[0, 2]], weight[[0, 2]])
    assert edited[1].tolist() == pytest.approx([0.4, 0.2, 1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_is_the_exact_product_to_one_unit_in_the_last_place(dtype: torch.dtype) -> None:
    weight = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    edited = scaled_weight(weight, UNIT, 0.3)
    exact = weight.double() * (1 - 0.3 * UNIT.double().abs())
    assert edited.dtype == dtype
    error = (edited.double() - exact).abs() / exact.abs()
    assert float(error.max()) <= torch.finfo(dtype).eps


def test_enhancing_does_not_undo_suppressing() -> None:
    weight = torch.ones(1, 3, dtype=torch.float64)
    both = scaled(weight, product([multiplier(UNIT, 1.0), multiplier(UNIT, 1.0, "enhance")]))
    assert both[0].tolist() == pytest.approx([1 - 0.36, 1 - 0.64, 1.0])


@pytest.mark.parametrize(
    ("direction", "strength", "mode", "message"),
    [
        (torch.tensor([3.0, 4.0]), 1.0, "suppress", "norm 5"),
        (torch.zeros(2), 1.0, "suppress", "norm 0"),
        (torch.tensor([1.0, math.nan]), 1.0, "suppress", "norm nan"),
        (torch.eye(2), 1.0, "suppress", "vector"),
        (torch.tensor([1.0, 0.0]), -1.0, "suppress", "strength -1"),
        (torch.tensor([1.0, 0.0]), math.inf, "suppress", "strength inf"),
    ],
)
def test_what_is_no_unit_vector_or_strength_is_refused(
    direction: torch.Tensor, strength: float, mode: Mode, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        multiplier(direction, strength, mode)


def test_a_weight_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match="direction of 3 features"):
        scaled_weight(torch.ones(2, 4), UNIT, 1.0)


def test_a_pickled_gate_is_its_fields_and_gives_the_same_factors() -> None:
    gate = Gate(torch.tensor([[0.6, 0.8]]), 1.25)
    factors = gate.factors
    again = pickle.loads(pickle.dumps(gate))
    assert set(vars(again)) == {"directions", "strength", "mode"}
    assert torch.equal(again.factors, factors)
