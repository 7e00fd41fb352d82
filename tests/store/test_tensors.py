"""Tensor files: whole and plain, or refused."""

import io
import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.errors import ArtifactError, InputError, SalveError
from salve_plugin.store.tensors import (
    DTYPES,
    MAX_HEADER_BYTES,
    check_header,
    decode_tensors,
    encode_tensors,
)


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4], "data_offsets": [start, end]}


FORMAT = {"__metadata__": {"format": "pt"}}


def test_tensors_survive_bit_for_bit_in_every_type() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(3, 2, generator=generator) * 9).to(dtype)
        for name, dtype in DTYPES.items()
    }
    tensors["special"] = torch.tensor([torch.inf, torch.nan, -0.0])
    tensors["transposed"] = tensors["F32"].T
    tensors["empty"] = torch.empty(0, 3)
    loaded = decode_tensors(encode_tensors(tensors))
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        ours, theirs = loaded[name].contiguous(), tensor.contiguous()
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


def test_the_same_tensors_give_the_same_bytes_in_any_order() -> None:
    tensors = {"b": torch.ones(2), "a": torch.zeros(3), "c": torch.ones(1, dtype=torch.int64)}
    assert encode_tensors(tensors) == encode_tensors(dict(reversed(tensors.items())))


def test_types_that_an_artifact_does_not_hold_are_refused() -> None:
    with pytest.raises(InputError, match="complex64"):
        encode_tensors({"a": torch.ones(1, dtype=torch.complex64)})


def test_a_pickle_is_recognized_and_never_loaded() -> None:
    for legacy in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(1)}, buffer, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ArtifactError, match="pickle"):
            decode_tensors(buffer.getvalue())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"\x01", "truncated"),
        ((2**62).to_bytes(8, "little") + b"{}", "header of"),
        (raw_file(b"{" + b" " * MAX_HEADER_BYTES + b"}"), "header is over"),
        (raw_file({}), "metadata"),
        (raw_file({"__metadata__": {"format": "pt", "more": "x"}}), "metadata"),
        (raw_file({**FORMAT, "a": entry(0, 4)}), "describes 4"),
        (raw_file({**FORMAT, "a": entry(0, 4)}, b"12345"), "describes 4"),
        (raw_file({**FORMAT, "a": entry(4, 8)}, b"12345678"), "gap"),
        (raw_file({**FORMAT, "a": entry(0, 8), "b": entry(4, 12)}, b"123456789012"), "overlap"),
        (raw_file({**FORMAT, "a": entry(0, 4, "BOOL")}, b"1234"), "entry of tensor 'a'"),
        (raw_file({**FORMAT, "a": {**entry(0, 4), "code": "x"}}, b"1234"), "entry of tensor"),
        (raw_file({**FORMAT, "a": {**entry(0, 4), "shape": [-1]}}, b"1234"), "entry of tensor"),
        (raw_file({**FORMAT, "a": {**entry(0, 4), "shape": [True]}}, b"1234"), "entry of tensor"),
        (raw_file({**FORMAT, "a": {**entry(0, 4), "dtype": []}}, b"1234"), "entry of tensor"),
        (raw_file(b'{"__metadata__":{"format":"pt"},"a":1,"a":2}'), "occur twice"),
        (raw_file({**FORMAT, **{str(i): entry(0, 0) for i in range(1025)}}), "more than 1024"),
    ],
)
def test_an_ill_formed_file_is_refused_with_its_reason(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        decode_tensors(data)


def test_a_huge_shape_is_refused_before_memory_is_asked_for() -> None:
    giant = {"dtype": "F64", "shape": [2**50, 2**50], "data_offsets": [0, 8]}
    with pytest.raises(ArtifactError, match="entry of tensor"):
        check_header(raw_file({**FORMAT, "a": giant}, b"12345678"))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.data())
def test_mutated_files_are_read_or_refused_but_never_crash(data: st.DataObject) -> None:
    whole = bytearray(encode_tensors({"a": torch.arange(4.0), "b": torch.ones(2, 2)}))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(SalveError):
        decode_tensors(bytes(whole))
