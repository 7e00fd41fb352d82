"""SHA-256 of files, of tensors, and of a JSON value with tensors: the one identity of a thing."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from salve_plugin.errors import UnsupportedModelError
from salve_plugin.store.json import dump


def sha256_bytes(data: bytes) -> str:
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


def state_digest(state: nn.Module | Mapping[str, Tensor]) -> str:
    """Return one digest over every tensor of a model, or of its state dict.

    It is `content_digest({}, state)`: equal exactly where names, dtypes, shapes and elements are,
    whatever the order, the device, and which names share memory.

    Args:
        state: a model, whose `state_dict()` is taken (parameters and persistent buffers), or a
            state dict.

    Raises:
        UnsupportedModelError: if an entry is no tensor, or one without plain elements: quantized,
            sparse, on the meta device, not yet initialized.
    """
    return content_digest({}, state.state_dict() if isinstance(state, nn.Module) else state)


def _elements(name: str, tensor: object) -> memoryview:
    """Return a tensor's elements, row-major, as bytes."""
    try:
        if not isinstance(tensor, Tensor) or tensor.is_quantized or tensor.is_meta:
            raise TypeError
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
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
