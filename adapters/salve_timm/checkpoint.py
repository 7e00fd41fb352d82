"""Weights of a file as a model's own, without what training put around them."""

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salve_plugin.errors import InputError
from salve_plugin.store.checkpoint import in_short, load_state
from salve_timm.probe import pretrained_cfg

State = Mapping[str, Any]


def read_state(checkpoint: str) -> State:
    """Return the state dict in a file; of timm's checkpoints the moving average, if there is one.

    Raises:
        ReadError: if it is no file, or cannot be read.
        InputError: if no state dict is in it, or several.
    """
    return load_state(Path(checkpoint), averaged=True)


def part_of(state: State, names: Iterable[str], checkpoint: str) -> tuple[State, list[str]]:
    """Return the entries of a state dict that are a model's, by the model's names, and the rest.

    Training puts `model.`, `backbone.`, `module._orig_mod.` and the like before the names: that
    prefix is taken off with which most of the model's names are found.

    Args:
        state: of a file.
        names: of the model's state dict.
        checkpoint: path of the file, for messages.

    Raises:
        InputError: if several models are in it, with other weights.
    """
    wanted = set(names)
    # Each name is tried without each prefix that ends in a dot; prefixes collect the names that
    # fit.
    hits = Counter(
        name[:cut]
        for name in state
        for cut in (0, *(at + 1 for at, letter in enumerate(name) if letter == "."))
        if name[cut:] in wanted
    )
    if not hits or hits[""] == len(wanted):
        return state, []
    most = max(hits.values())
    best = sorted((prefix for prefix, count in hits.items() if count == most), key=len)
    # Prefixes with as many names hold copies of one model, or several models: only copies are
    # taken.
    parts = [_under(state, prefix) for prefix in best]
    if any(not _same(parts[0], part, wanted) for part in parts[1:]):
        raise InputError(
            f"checkpoint '{checkpoint}' holds several models of this form, {best}; save the state "
            "dict of the one that is meant in a file of its own"
        )
    return parts[0], [name for name in state if not name.startswith(tuple(best))]


def n_classes_in(state: State, model: nn.Module) -> int | None:
    """Return the number of outputs of the classifier in a state dict of the model's names."""
    classifier = pretrained_cfg(model).get("classifier")
    first = classifier[0] if isinstance(classifier, tuple | list) and classifier else classifier
    weight = state.get(f"{first}.weight")
    return len(weight) if isinstance(weight, Tensor) and weight.ndim else None


def fill(model: nn.Module, state: State, rest: Collection[str], name: str, checkpoint: str) -> None:
    """Load a state dict strictly.

    Args:
        model: as it was built.
        state: by the model's names.
        rest: names of what else the file has, which is left out.
        name: of the model, for messages.
        checkpoint: path of the file, for messages.

    Raises:
        InputError: names, in short, what is missing, unknown or of another shape.

    Warns:
        UserWarning: of what is left out.
    """
    own = {key: tensor.shape for key, tensor in model.state_dict().items()}
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    shapes = {
        f"{key} {tuple(state[key].shape)}, not {tuple(own[key])}": None
        for key in own
        if isinstance(state.get(key), Tensor) and state[key].shape != own[key]
    }
    kinds = {
        "missing": sorted(missing),
        "unknown": sorted(unknown),
        "of another shape": list(shapes),
        "under another prefix": rest if missing else [],
    }
    parts = [f"{len(keys)} {kind} ({in_short(keys)})" for kind, keys in kinds.items() if keys]
    if parts:
        raise InputError(
            f"checkpoint '{checkpoint}' does not fit '{name}', of whose {len(own)} tensors it has "
            f"{len(own) - len(missing) - len(shapes)}: {'; '.join(parts)}. Give the model name and "
            "the number of classes that it was trained with"
        )
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"checkpoint '{checkpoint}' does not fit '{name}': {first}") from error
    if rest:
        warnings.warn(
            f"{len(rest)} entries of checkpoint '{checkpoint}' are left out ({in_short(rest)}): if "
            "the trained model's logits go through them, these are others",
            stacklevel=4,
        )


def _under(state: State, prefix: str) -> State:
    return {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }


def _same(one: State, other: State, names: Iterable[str]) -> bool:
    return all(
        torch.equal(one[name], other[name]) if name in one and name in other else name not in one
        for name in names
    )
