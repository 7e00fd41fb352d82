"""Data as scripts: whatever a name holds, it stays text; numbers come back as they were."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salve_plugin.report.scripts import array, quantized, script

names = st.text() | st.sampled_from(
    ["</script><script>alert(1)</script>", "<!--<script>", "\u2028\u2029", "\ud800", "&lt;", "]]>"]
)


@given(names)
def test_text_ends_no_script_and_comes_back(name: str) -> None:
    data = script("index", {"name": name}).decode("ascii")
    inside = data.removeprefix('atlas.provide("index",').removesuffix(");\n")
    assert not re.search("[<>&\u2028\u2029\n]", inside)
    assert json.loads(inside) == {"name": name}


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script("a", {"value": float("nan")})


@pytest.mark.parametrize(("kind", "own"), [("i8", "<i1"), ("i32", "<i4"), ("f32", "<f4")])
def test_arrays_are_little_endian(kind: str, own: str) -> None:
    values = torch.tensor([[1, -2], [3, 100]])
    packed = array(values, kind)
    assert packed["type"] == kind
    assert np.frombuffer(base64.b64decode(packed["data"]), own).tolist() == [1, -2, 3, 100]


def test_infinite_strengths_survive() -> None:
    packed = array(torch.tensor([0.1, torch.inf], dtype=torch.float64), "f64")
    back = np.frombuffer(base64.b64decode(packed["data"]), "<f8")
    assert back.tolist() == [0.1, float("inf")]


def test_tiny_values_are_quantized_too() -> None:
    whole, unit = quantized(torch.tensor([1e-40, -1e-40, 0.0]))
    assert whole.tolist() == [127, -127, 0]
    assert 127 * unit == pytest.approx(1e-40, rel=1e-5)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_quantized_values_are_off_by_half_a_unit_at_most(values: list[float]) -> None:
    given_values = torch.tensor(values, dtype=torch.float64)
    whole, unit = quantized(given_values)
    assert whole.dtype == torch.int8
    assert float((whole.double() * unit - given_values).abs().max()) <= 0.5 * unit * (1 + 1e-9)
