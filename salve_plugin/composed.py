"""Tensors that consist of others, as quantized weights do: such a tensor's own memory is empty."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def is_composed(tensor: Tensor) -> bool:
    """Say whether a tensor consists of others."""
    return hasattr(tensor, "__tensor_flatten__")  # torch's protocol for such subclasses


def plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with the parts of composed tensors in their places, named after them.

    A weight that torchao quantized becomes `head.weight.qdata`, `head.weight.scale`, and so on.
    """
    parts: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and is_composed(tensor):
            names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined] # of subclasses
            parts |= plain({f"{name}.{part}": getattr(tensor, part) for part in names})
        else:
            parts[name] = tensor
    return parts
