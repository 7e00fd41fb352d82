"""The tensors of a model, of a state dict, or of a file of one, by the names of the model."""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from salve_plugin.control.base import bare
from salve_plugin.control.matching import pristine_state
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.store.checkpoint import in_short, load_state
from salve_plugin.store.files import usable

State = Mapping[str, Tensor]
StateSource = nn.Module | State | str | Path


def state_of(source: StateSource, *, pristine: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a model, of a state dict, or of a file of one.

    Args:
        source: a model; its state dict; the path of a `.safetensors` file, of a file that
            `torch.save` wrote (a state dict, alone or in a checkpoint), or of a folder with
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
        entries = load_state(usable(source))
    elif isinstance(source, Mapping):
        entries = source
    else:
        raise InputError(f"{source!r:.80} is no model, no state dict and no path of one")
    name = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"
    if not entries:
        raise InputError(f"{name} holds no tensors; expected a model's state dict")
    other = [
        str(key)
        for key, value in entries.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if other:
        raise InputError(
            f"{name} holds entries that are no tensors by name and so cannot be compared: "
            f"{in_short(other)}; expected a state dict"
        )
    odd = [key for key, tensor in entries.items() if not is_plain(tensor)]
    if odd:
        raise UnsupportedModelError(
            f"{name} holds tensors without plain elements (quantized, sparse, on the meta device "
            f"or not initialized): {in_short(odd)}; load or dequantize the model's weights first"
        )
    return {key: tensor.detach() for key, tensor in entries.items()}


def is_plain(tensor: object) -> bool:
    """Tell whether this is a tensor whose elements lie in memory, one after the other."""
    if not isinstance(tensor, Tensor):
        return False
    dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    return dense and not is_lazy(tensor)


def without_prefix(state: State, wanted: Set[str]) -> State:
    """Return a state dict without the one prefix that all its names have beside the wanted ones.

    Training wrappers put "module.", "model." or "_orig_mod." before every name. A state dict that
    does not have all wanted names after that is returned as it is.
    """
    if not wanted or wanted <= state.keys():
        return state
    first = min(wanted)
    for name in state:
        # Each name that ends like the wanted one proposes a prefix; all names have to have it.
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
    # Tensors without elements all lie at the same address, none.
    home = {_memory(state[name]): name for name in names if name in state and state[name].numel()}
    return {
        name: home[_memory(tensor)]
        for name, tensor in state.items()
        if tensor.numel() and _memory(tensor) in home
    }


def _memory(tensor: Tensor) -> tuple[object, ...]:
    # With shape and strides: a view of some rows may begin at the same address, and is another
    # tensor.
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()
