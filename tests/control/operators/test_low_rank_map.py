"""The low-rank map's weights against the map itself, at readers and writers, in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import WIDTH, bits, small
from torch import Tensor
from torch.nn import functional

from salve_plugin import edit_at
from salve_plugin.control.operators import Fold, LowRankMap, Part, joint_map, operator_of
from salve_plugin.control.operators import operator_fields as fields_of
from salve_plugin.errors import InputError


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_map(seed: int, width: int, rank: int, scale: float = 0.25) -> LowRankMap:
    return LowRankMap(
        draw(seed, width, rank), draw(seed + 1, width, rank), draw(seed + 2, rank), scale
    )


def applied(part: Part, tensor: Tensor) -> Tensor:
    """Return what a part makes of a whole parameter."""
    result = tensor.clone() if part.factors is None else tensor * part.factors
    added = part.added_at(slice(0, len(tensor)))
    return result if added is None else result + added


seeds = st.integers(0, 10**6)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seeds, st.integers(2, 9), st.integers(1, 2), st.floats(-2, 3))
def test_a_linear_reader_sees_the_mapped_site(
    seed: int, width: int, rank: int, scale: float
) -> None:
    change = random_map(seed, width, rank, scale)
    weight, bias, x = draw(seed + 3, 4, width), draw(seed + 4, 4), draw(seed + 5, 6, width)
    edited = functional.linear(
        x, applied(change.reader_weight(weight), weight), applied(change.reader_bias(weight), bias)
    )
    expected = functional.linear(change.activation(x, 1), weight, bias)
    torch.testing.assert_close(edited, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seeds, st.sampled_from([1, 2, 3]), st.integers(1, 3))
def test_a_convolution_without_padding_sees_the_mapped_site(
    seed: int, kernel: int, rank: int
) -> None:
    change = random_map(seed, 5, rank)
    weight, bias = draw(seed + 3, 4, 5, kernel, kernel), draw(seed + 4, 4)
    x = draw(seed + 5, 2, 5, 6, 7)
    edited = functional.conv2d(
        x, applied(change.reader_weight(weight), weight), applied(change.reader_bias(weight), bias)
    )
    expected = functional.conv2d(change.activation(x, 1), weight, bias)
    torch.testing.assert_close(edited, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seeds, st.sampled_from(["plain", "scale", "norm", "norm without layer bias"]))
def test_a_writer_writes_the_mapped_site_through_what_is_between(seed: int, between: str) -> None:
    width, change = 5, random_map(seed, 5, 2)
    weight, bias = draw(seed + 3, width, 3, 2, 2), draw(seed + 4, width)
    x, scale = draw(seed + 5, 2, 3, 6, 7), draw(seed + 6, width).abs() + 0.1
    shift = draw(seed + 7, width)
    norm_bias = draw(seed + 8, width)
    fold = {
        "plain": Fold.none(width),
        "scale": Fold(scale, torch.zeros_like(shift), False),
        "norm": Fold(scale, shift, False),
        "norm without layer bias": Fold(scale, shift, True),
    }[between]

    def site(weight: Tensor, bias: Tensor) -> Tensor:
        if fold.bias_last:  # the bias is the norm's own
            y = functional.conv2d(x, weight) * fold.scale[:, None, None]
            return y + (fold.shift + bias)[:, None, None]
        y = functional.conv2d(x, weight, bias)
        return y * fold.scale[:, None, None] + fold.shift[:, None, None]

    own = norm_bias if fold.bias_last else bias
    edited = site(
        applied(change.writer_weight(weight, fold), weight),
        applied(change.writer_bias(own, fold), own),
    )
    expected = change.activation(site(weight, own), 1)
    torch.testing.assert_close(edited, expected, rtol=1e-9, atol=1e-9)


def test_scale_one_changes_no_bit_and_zero_removes_an_oblique_part() -> None:
    weight = draw(0, 4, 6)
    nothing = random_map(1, 6, 2, scale=1.0)
    assert torch.equal(applied(nothing.reader_weight(weight), weight), weight)
    write, read = draw(2, 6, 2), draw(3, 6, 2)
    write = write @ torch.linalg.inv(read.T @ write)
    removed = LowRankMap(write, read, draw(4, 2)).activation(draw(5, 7, 6), 1)
    torch.testing.assert_close(removed @ read, draw(4, 2).expand(7, 2))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seeds, st.sampled_from([torch.float32, torch.float64]))
def test_it_comes_back_from_its_fields_and_tensors(seed: int, kind: torch.dtype) -> None:
    change = random_map(seed, 4, 2)
    change = LowRankMap(change.write.to(kind), change.read.to(kind), change.offset.to(kind), 0.5)
    again = operator_of(fields_of(change), change.tensors)
    assert fields_of(again) == fields_of(change)
    for name, tensor in change.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
        assert again.tensors[name].dtype == kind


def test_a_joint_map_sets_every_reading_once() -> None:
    one, other = random_map(0, 6, 1, 0.0), random_map(10, 6, 2, 0.0)
    joint = joint_map([one, other])
    x = joint.activation(draw(20, 5, 6), 1)
    torch.testing.assert_close(x @ one.read, one.offset.expand(5, 1))
    torch.testing.assert_close(x @ other.read, other.offset.expand(5, 2))
    with pytest.raises(InputError, match="linearly dependent"):
        joint_map([one, one])
    with pytest.raises(InputError, match="one scale"):
        joint_map([one, random_map(3, 6, 1, 0.5)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": torch.ones(5, 2)}, "do not fit"),
        ({"offset": torch.zeros(3)}, "do not fit"),
        ({"write": torch.ones(4)}, "2 axes"),
        ({"write": torch.full((4, 2), torch.nan)}, "NaN"),
        ({"write": torch.ones(4, 2, dtype=torch.int64)}, "floating"),
        ({"scale": float("nan")}, "scale nan"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "write": torch.ones(4, 2), "read": torch.ones(4, 2), "offset": torch.zeros(2),
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        LowRankMap(**{**parts, **change})


def test_signed_zeros_do_not_make_another_operator() -> None:
    write = torch.tensor([[1.0], [-0.0]])
    change = LowRankMap(write, write, torch.tensor([-0.0]), -0.0)
    for tensor in change.tensors.values():
        assert not bool(torch.signbit(tensor).any())
    assert str(change.scale) == "0.0"


@pytest.mark.parametrize("site", ["sum", "norm", "conv", "stem", "attn_out"])
def test_at_scale_one_every_bit_stays_the_sign_of_zeros_too(site: str) -> None:
    hooked = small()
    with torch.no_grad():
        for name, parameter in hooked.model.named_parameters():
            if name not in ("scale.gamma", "norm0.weight"):  # through zeros nothing is exact
                parameter.reshape(-1)[::2] = -0.0
    before = bits(hooked.model)
    operator = random_map(2, WIDTH, 2, 1.0)
    with edit_at(hooked, site, operator, role="writer" if site == "stem" else None).applied(hooked):
        assert bits(hooked.model) == before


def test_a_model_with_the_map_is_differentiable_through_the_activation() -> None:
    x = draw(0, 3, 4).requires_grad_()
    random_map(1, 4, 1).activation(x, 1).square().sum().backward()  # type: ignore[no-untyped-call] # torch's
    assert x.grad is not None
    assert bool(x.grad.any())
