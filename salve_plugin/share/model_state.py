"""The tensors of a model, of a state dict, or of a file of one, by the names of the model."""

from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from salve_plugin.control.base import bare
from salve_plugin.control.matching import pristine_state
from salve_plugin.errors import InputError, ReadError, UnsupportedModelError

State = Mapping[str, Tensor]
StateSource = nn.Module | State | str | Path

WEIGHTS = "model.safetensors"
"""The file in a folder that holds the weights."""
_NESTED = ("state_dict", "state_dict_ema", "model", "model_ema")
"""Where training scripts put a state dict beside an optimizer's state and the like."""


def state_of(source: StateSource, *, pristine: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a model, of a state dict, or of a file of one.

    Args:
        source: a model; its state dict; the path of a `.safetensors` file, of a file that
            `torch.save` wrote (a state dict, alone or under one of `_NESTED`), or of a folder with
            `model.safetensors`.
        pristine: take a model without the edits that are on it.

    Raises:
        InputError: if there are no tensors in it, other things than tensors, or several state
            dicts.
        ReadError: if a file cannot be read.
        UnsupportedModelError: if a tensor has no plain elements.
    """
    if isinstance(source, nn.Module):
        network = bare(source)
        entries: Mapping[str, Any] = dict(network.state_dict())
        if pristine:
            entries = {**entries, **pristine_state(network)}
    elif isinstance(source, str | Path):
        entries = _loaded(Path(source))
    else:
        entries = source
    name = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"
    if not entries:
        raise InputError(f"{name} holds no tensors; expected a model's state dict")
    other = [key for key, value in entries.items() if not isinstance(value, Tensor)]
    if other:
        raise InputError(
            f"{name} holds entries that are no tensors and so cannot be compared: "
            f"{in_short(other)}; expected a state dict, of tensors by name"
        )
    odd = [key for key, tensor in entries.items() if not _is_plain(tensor)]
    if odd:
        raise UnsupportedModelError(
            f"{name} holds tensors without plain elements (quantized, sparse, on the meta device "
            f"or not initialized): {in_short(odd)}; load or dequantize the model's weights first"
        )
    return {key: tensor.detach() for key, tensor in entries.items()}


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    return dense and not is_lazy(tensor)


def _loaded(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        path = path / WEIGHTS
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            tensors: dict[str, Any] = safetensors.torch.load_file(path)
            return tensors
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has errors of its own for a file that is not one
        raise ReadError(
            f"cannot read the weights in {path}: {error}; expected a .safetensors file, a state "
            f"dict that torch.save wrote, or a folder with {WEIGHTS}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, expected a state dict")
    nested = [key for key in _NESTED if isinstance(loaded.get(key), Mapping)]
    if len(nested) > 1:
        raise InputError(
            f"{path} holds several state dicts, {nested}; save the one that is meant in a file of "
            "its own"
        )
    inner: Mapping[str, Any] = loaded[nested[0]] if nested else loaded
    return inner


def without_prefix(state: State, wanted: Set[str]) -> State:
    """Return a state dict without the one prefix that all its names have beside the wanted ones.

    Training wrappers put "module.", "model." or "_orig_mod." before every name. A state dict that
    does not have all wanted names after that is returned as it is.
    """
    if not wanted or wanted <= state.keys():
        return state
    first = min(wanted)
    for name in state:
        prefix = name.removesuffix(first)
        if name == prefix or not prefix.endswith("."):
            continue
        if all(other.startswith(prefix) for other in state):
            short = {other.removeprefix(prefix): tensor for other, tensor in state.items()}
            if wanted <= short.keys():
                return short
    return state


def tied_to(state: State, names: Iterable[str]) -> dict[str, str]:
    """Return those names of a state dict whose tensor is, in memory, that of one of `names`.

    Tied weights are one parameter with several names. What a file has twice is not told apart from
    two parameters that are equal.
    """
    home = {_memory(state[name]): name for name in names if name in state and state[name].numel()}
    return {
        name: home[_memory(tensor)]
        for name, tensor in state.items()
        if tensor.numel() and _memory(tensor) in home
    }


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def in_short(names: Collection[str], most: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
