"""SHA-256 of files, of tensors, and of a JSON value with tensors: the one identity of a thing."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from salve_plugin.composed import plain
from salve_plugin.errors import UnsupportedModelError
from salve_plugin.kinds import of_kind
from salve_plugin.store.json import dump
from salve_plugin.store.record import Index, Record, Sha256


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes, which are read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensor(tensor: Tensor) -> str:
    """Return the hex SHA-256 of a tensor's elements, row-major, in its own dtype.

    Raises:
        UnsupportedModelError: if it has no plain elements, see `state_digest`.
    """
    return hashlib.sha256(_elements("a tensor", tensor)).hexdigest()


def content_digest(config: object, tensors: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 of a JSON value and named tensors, however they are stored.

    Hashed are the canonical JSON, then for each tensor in the order of its name: name, dtype and
    shape as canonical JSON, and the elements, row-major and little-endian; each of these blocks
    is preceded by its length as eight little-endian bytes. File layouts, library versions, devices
    and platforms do not enter.

    Args:
        config: a value that has passed `salve_plugin.store.json.check_json`.
        tensors: by name.

    Raises:
        UnsupportedModelError: if a tensor has no plain elements, see `state_digest`.
    """
    state = hashlib.sha256()
    _hash_block(state, dump(config))
    for name, tensor in sorted(tensors.items()):
        elements = _elements(f"'{name}'", tensor)  # first: it refuses what has no shape
        dtype = str(tensor.dtype).removeprefix("torch.")
        _hash_block(state, dump({"name": name, "dtype": dtype, "shape": list(tensor.shape)}))
        _hash_block(state, elements)
    return state.hexdigest()


@dataclass(frozen=True)
class Fingerprint(Record):
    """One tensor's identity.

    Attributes:
        shape: as stored in the model (a 1x1 convolution keeps its four axes).
        dtype: torch's name without the prefix, e.g. `float32`; files name floating ones only.
        sha256: hex digest of the elements, row-major, in that dtype.
    """

    shape: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=8)]
    dtype: Annotated[str, Meta(pattern=r"^(bfloat16|float(16|32|64))$(?!\n)")]
    sha256: Sha256

    @classmethod
    def of(cls, tensor: Tensor, name: str = "a tensor") -> "Fingerprint":
        """Return the fingerprint of a tensor; costs one pass of SHA-256 over its bytes.

        Args:
            tensor: what to hash.
            name: what it is called in messages.

        Raises:
            UnsupportedModelError: if it has no plain elements, see `state_digest`.
        """
        sha256 = sha256_bytes(_elements(name, tensor))  # first: it refuses what has no shape
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), sha256)

    def __str__(self) -> str:
        """Name the shape, the dtype and the start of the digest."""
        return f"{self.dtype}{list(self.shape)} sha256 {self.sha256[:12]}…"


def fingerprints(state: nn.Module | Mapping[str, Any]) -> dict[str, Fingerprint]:
    """Return the fingerprint of every tensor of a model or state dict, each hashed once.

    A quantized weight of a model (torchao's, for example) counts as the tensors that it consists
    of, named after it: `head.weight.qdata`, `head.weight.scale`.

    Raises:
        UnsupportedModelError: names the entry that has no plain elements, see `state_digest`.
    """
    tensors = plain(state.state_dict()) if isinstance(state, nn.Module) else state
    for name, entry in tensors.items():
        if not isinstance(entry, Tensor):
            _elements(f"'{name}'", entry)  # which refuses it by name
    return {name: Fingerprint.of(tensor, f"'{name}'") for name, tensor in tensors.items()}


def state_digest(state: nn.Module | Mapping[str, Tensor | Fingerprint]) -> str:
    """Return one digest over every tensor of a model, or of its state dict.

    It is the `content_digest` of the fingerprints by name: equal exactly where names, dtypes,
    shapes and elements are, whatever the order, the device, and which names share memory.

    Args:
        state: a model, whose `state_dict()` is taken (parameters and persistent buffers), a state
            dict, or its `fingerprints`, where those are known: then nothing is hashed again.

    Raises:
        InputError: if it is neither a model nor a state dict.
        UnsupportedModelError: if an entry is no tensor, or one without plain elements: quantized,
            sparse, on the meta device, not yet initialized.
    """
    if isinstance(state, nn.Module):
        state = fingerprints(state)
    of_kind(state, Mapping, "state", "a model or a state dict")
    known = {name: each for name, each in state.items() if isinstance(each, Fingerprint)}
    prints = known | fingerprints({n: each for n, each in state.items() if n not in known})
    return content_digest({name: each.to_json() for name, each in prints.items()}, {})


def _elements(name: str, tensor: object) -> memoryview:
    """Return a tensor's elements, row-major, as bytes."""
    try:
        if not isinstance(tensor, Tensor) or tensor.is_quantized or tensor.is_meta:
            raise TypeError
        # A conjugate or negative view has the bytes of its base until it is resolved.
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # Flat, since a tensor without axes cannot be seen as bytes; bytes, since NumPy has no
        # bfloat16.
        return memoryview(plain.reshape(-1).view(torch.uint8).numpy().data)
    # Sparse tensors, lazy parameters and tensor subclasses each refuse with an error of their own.
    except (TypeError, RuntimeError, ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"{name} has no plain elements to hash: it is {_described(tensor)}; expected a dense "
            "tensor in memory. Load or dequantize the model's weights first"
        ) from error


def _described(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    return f"a {type(tensor).__name__}, {tensor.dtype}, {tensor.layout}, on '{tensor.device}'"


def _hash_block(state: "hashlib._Hash", block: bytes | memoryview) -> None:
    # The length in front keeps two neighbours from trading bytes.
    state.update(len(block).to_bytes(8, "little"))
    state.update(block)
