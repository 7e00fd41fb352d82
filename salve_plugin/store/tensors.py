"""Safetensors: tensors to bytes and back, nothing but tensors.

The layout is safetensors' own: eight bytes of header length, a JSON header, the elements. Reading
checks the header before anything is allocated, more strictly than the safetensors library does.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.store.json import Json, parse_json, shortened
from salve_plugin.store.record import Index, Record

METADATA = {"format": "pt"}
"""Exactly this: with two or more keys the library writes them in random order."""
MAX_TENSOR_FILE_BYTES = 4 * 2**30
MAX_HEADER_BYTES = 2**20
MAX_TENSORS = 1024
MAX_AXES = 8

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""The element types that a file may hold, by their safetensors names."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


Shape = Annotated[list[Index], Meta(max_length=MAX_AXES)]


@dataclass(frozen=True)
class TensorEntry(Record):
    """A tensor as a manifest lists it."""

    dtype: Literal["BF16", "F16", "F32", "F64", "I64"]
    shape: Shape


def dtype_name(dtype: torch.dtype) -> str:
    """Return safetensors' name of an element type.

    Raises:
        InputError: if files do not hold that type.
    """
    if dtype not in _NAMES:
        raise InputError(f"a tensor file cannot hold {dtype}; it holds {sorted(map(str, _NAMES))}")
    return _NAMES[dtype]


def describe(tensors: Mapping[str, Tensor]) -> dict[str, Json]:
    """Return dtype and shape of each tensor, as the manifest lists them."""
    return {
        name: {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file; the same tensors give the same bytes.

    Raises:
        InputError: if a tensor's type cannot be held or there are too many.
    """
    import safetensors.torch

    if len(tensors) > MAX_TENSORS:
        raise InputError(f"{len(tensors)} tensors are more than the {MAX_TENSORS} of one file")
    # Which refuses what a file cannot hold, before anything is copied.
    describe(tensors)
    # Copies: the library refuses tensors that share memory, which parts of one matrix do.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(plain, metadata=dict(METADATA))
    return data


def decode_tensors(data: bytes, file: str = "the tensor file") -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file.

    Raises:
        ArtifactError: if the bytes are a pickle or zip, truncated, have a header that is too
            long, ill-formed, with other metadata, element types or gaps, or too many tensors.
    """
    notes, tensors = decode_noted(data, file)
    if notes != METADATA:
        raise ArtifactError(
            f"{file} has other metadata than {METADATA}; salve_plugin writes no such file"
        )
    return tensors


def decode_noted(
    data: bytes, file: str = "the tensor file"
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata, texts by their names, and the tensors; see `decode_tensors`."""
    import safetensors.torch

    notes = check_header(data, file)
    try:
        loaded: dict[str, Tensor] = safetensors.torch.load(data)
    except Exception as error:  # the library's own exception is not a stable name
        raise ArtifactError(f"{file} cannot be read: {error}; it is corrupt") from error
    return notes, loaded


def check_header(data: bytes, file: str = "the tensor file") -> dict[str, str]:
    """Return the metadata; raise unless the bytes are laid out as a safetensors file of ours is."""
    length = int.from_bytes(data[:8], "little")
    # The length is the file's own claim: checked before so many bytes are taken for the header.
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        if data[:2] == b"PK" or data[:1] == b"\x80":
            raise ArtifactError(
                f"{file} is a pickle (a torch.save file), which can run code and is never "
                "loaded; ask its author for safetensors"
            )
        raise ArtifactError(
            f"{file} has {len(data)} bytes and a header of {length}; it is truncated, "
            f"corrupt, or its header is over {MAX_HEADER_BYTES} bytes"
        )
    header = parse_json(data[8 : 8 + length], f"{file}'s header", max_bytes=length)
    notes = header.pop("__metadata__", None)
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ArtifactError(f"{file} has the metadata {repr(notes)[:80]}, texts were expected")
    if len(header) > MAX_TENSORS:
        raise ArtifactError(f"{file} has {len(header)} tensors, more than {MAX_TENSORS}")
    # The tensors must fill the data from end to end: what no entry covers could be changed, or hold
    # something, without any tensor showing it.
    spans = sorted(_span(file, name, entry) for name, entry in header.items())
    place = 0
    for start, end in spans:
        if start != place:
            raise ArtifactError(f"{file} has a gap or overlap at byte {place} of its data")
        place = end
    if place != len(data) - 8 - length:
        raise ArtifactError(
            f"{file} holds {len(data) - 8 - length} bytes of data, its header describes "
            f"{place}; it is truncated or has bytes appended"
        )
    return notes


def _span(file: str, name: str, entry: object) -> tuple[int, int]:
    """Return where a tensor's elements start and end, after checking its header entry."""
    if isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if (
            isinstance(dtype, str)
            and dtype in DTYPES
            and _are_sizes(shape, range(MAX_AXES + 1))
            and _are_sizes(offsets, range(2, 3))
            and offsets[1] - offsets[0] == prod(shape) * DTYPES[dtype].itemsize
        ):
            return offsets[0], offsets[1]
    raise ArtifactError(
        f"{file}: the entry of tensor {name[:80]!r} is {repr(entry)[:120]}; expected dtype "
        f"(one of {sorted(DTYPES)}), shape and matching data_offsets"
    )


def _are_sizes(value: object, lengths: range) -> bool:
    return (
        isinstance(value, list)
        and len(value) in lengths
        and all(type(item) is int and item >= 0 for item in value)
    )


def check_names(names: Collection[str], expected: Collection[str], what: str) -> None:
    """Raise ArtifactError unless two sets of names are equal, with both differences."""
    missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    if missing or extra:
        raise ArtifactError(
            f"{what}: missing {shortened(missing[:5], 300)}, unexpected "
            f"{shortened(extra[:5], 300)}; the files are corrupt or were put together by hand"
        )


def check_described(tensors: Mapping[str, Tensor], said: Mapping[str, Any], file: str) -> None:
    """Raise ArtifactError unless tensors have the names, types and shapes of `describe`."""
    check_names(tensors, said, f"tensors in {file}")
    for name, tensor in tensors.items():
        dtype, shape = said[name]["dtype"], said[name]["shape"]
        if tensor.dtype != DTYPES[dtype] or list(tensor.shape) != shape:
            raise ArtifactError(
                f"tensor '{name}' in {file} is {tensor.dtype} of shape {list(tensor.shape)}, the "
                f"manifest says {dtype} of shape {shape}; one of them was changed by hand"
            )
