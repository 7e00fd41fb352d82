"""State dicts in files: safetensors, and what torch.save, timm and Lightning wrote.

Nothing in a file is run: it is read by torch's reader of weights. What a training script saved
beside the weights (paths, namespaces, configurations) is of classes that this reader refuses, and
need not be refused for that: such objects are read as stand-ins, which do nothing.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salve_plugin.errors import InputError, ReadError

WEIGHTS = "model.safetensors"
"""The file in a folder that holds the weights."""

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Of files that may hold weights."""

SHARD = re.compile(r"-\d+-of-\d+\.")
"""In the name of a file that holds a part of them."""

AVERAGED = ("state_dict_ema", "model_ema")
"""Where timm's training script puts the moving average of the weights, beside the last ones."""

ALONE = (
    "The code of such objects is not run; where it can be, save the weights alone: "
    "torch.save(model.state_dict(), 'weights.pth')"
)

PLAIN = ("collections", "torch", "torch._utils", "torch.storage")
"""Modules that weights themselves are pickled with."""

OLD_PICKLES = 4
"""In the form before the zip file: a magic number, a version, the machine, then what was saved."""


def load_state(path: Path, *, averaged: bool = False) -> Mapping[str, Any]:
    """Return the state dict in a file, alone or in a training script's checkpoint.

    Args:
        path: a `.safetensors` file, a file that `torch.save` wrote, or a folder with
            `model.safetensors`.
        averaged: of a checkpoint that has the weights' moving average beside the weights, take
            the average, as timm does; else several state dicts are refused.

    Returns:
        Tensors by name; other values too, where the file has them among its tensors.

    Raises:
        ReadError: if it cannot be read, or has objects among its tensors.
        InputError: if there is no state dict in it, or several; a pickled module is named.
    """
    check_is_file(path)
    path = weights_file(path)
    expected = (
        f"expected a .safetensors file, a state dict of torch.save, or a folder with {WEIGHTS}"
    )
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            tensors: dict[str, Any] = safetensors.torch.load_file(path)
            return tensors
        loaded = _read(path)
    except Exception as error:  # each library has errors of its own for a file that is not one
        pickled = list(dict.fromkeys(_pickled_classes(path)))
        if pickled:
            raise ReadError(
                f"cannot read the weights in {path}, which has pickled objects: "
                f"{in_short(pickled)}. {ALONE}"
            ) from error
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0][:300]}"
        if isinstance(error, pickle.UnpicklingError):  # its text tells how to switch safety off
            reason = "it is none of torch.save's"
        raise ReadError(f"cannot read the weights in {path} ({reason}); {expected}") from error
    if isinstance(loaded, _StandIn):
        raise InputError(_whole(path, type(loaded).__name__))
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, {expected}")
    return _state_in(loaded, path, averaged=averaged)


def weights_file(path: Path) -> Path:
    """Return the file itself, of a folder that in it."""
    return path / WEIGHTS if path.is_dir() else path


def check_is_file(path: Path) -> None:
    """Refuse what is no file of weights, nor a folder that has one.

    Raises:
        ReadError: that says what the folder has instead.
    """
    if weights_file(path).is_file():  # a pipe would be waited for
        return
    if not path.is_dir():
        raise ReadError(
            f"checkpoint '{path}' is not a file; give the path of a state dict, .safetensors or "
            ".pth"
        )
    others = sorted(file.name for file in path.iterdir() if file.suffix in ENDINGS)
    remedy = "give the path of a state dict, .safetensors or .pth"
    if any(SHARD.search(name) for name in others):
        remedy = (
            "weights in several files are not read: join them in one, as the library that wrote "
            "them does when its shards may be larger (max_shard_size), and give that"
        )
    elif others:
        remedy = f"give the path of one of its files: {in_short(others)}"
    raise ReadError(
        f"cannot read the weights in '{path}', which is a folder without {WEIGHTS}; {remedy}"
    )


def in_short(names: Collection[str], most: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


class _StandIn:
    """What is read in place of an object of another class; its subclass has that one's name."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _read(path: Path) -> Any:
    # The form before the zip file, which nobody has written for years, is read without stand-ins.
    foreign = (
        torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if zipfile.is_zipfile(path)
        else []
    )
    # What is allowed here are the stand-ins: the names lead to nothing else.
    stand_ins: list[Any] = [(type(name, (_StandIn,), {}), name) for name in foreign]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_in(loaded: Mapping[Any, Any], path: Path, *, averaged: bool) -> Mapping[str, Any]:
    nested = {key: value for key, value in loaded.items() if _is_state(value)}
    chosen = [key for key in AVERAGED if averaged and key in nested] or list(nested)
    if len(chosen) > 1 and not (averaged and chosen[0] in AVERAGED):
        raise InputError(
            f"{path} holds several state dicts, {chosen}; save the one that is meant in a file of "
            "its own"
        )
    if chosen:
        state: Mapping[str, Tensor] = nested[chosen[0]]
        return state
    objects = {str(key): value for key, value in loaded.items() if isinstance(value, _StandIn)}
    if objects and not any(isinstance(value, Tensor) for value in loaded.values()):
        name, value = next(iter(objects.items()))
        raise InputError(_whole(path, type(value).__name__, f" under '{name}'"))
    if objects:
        raise ReadError(
            f"cannot read the weights in {path}, which has pickled objects among them: "
            f"{in_short(objects)}. {ALONE}"
        )
    numbered = [str(key) for key in loaded if not isinstance(key, str)]
    if numbered:  # as an optimizer's are
        raise InputError(
            f"{path} holds entries without names: {in_short(numbered)}; expected a state dict, "
            "tensors by name"
        )
    return loaded


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(each, Tensor) for key, each in value.items())
    )


def _whole(path: Path, name: str, where: str = "") -> str:
    return f"{path} holds no state dict but a whole pickled object{where}: {name}. {ALONE}"


def _pickled_classes(path: Path) -> Iterator[str]:
    """Yield the classes of a pickle that are not those of weights; it is scanned, not loaded."""
    try:
        stream = io.BytesIO(_pickle_of(path))
        for _ in range(OLD_PICKLES):
            texts: list[str] = []
            for operation, argument, _ in pickletools.genops(stream):
                # It takes module and name from the stack. Those are the last two texts, unless the
                # pickle repeats one from its memo: good enough for a message.
                if operation.name == "STACK_GLOBAL":
                    argument = " ".join(texts[-2:])
                if isinstance(argument, str):
                    texts.append(argument)
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    module, _, name = str(argument).partition(" ")
                    if module not in PLAIN:
                        yield f"{module}.{name}"
    # The end of what is a pickle, or a zip file that is damaged, encrypted or packed in another
    # way, each with its own error: the file was refused before, which is what is to be told.
    except Exception:
        return


def _pickle_of(path: Path) -> bytes:
    """Return the pickle in the zip file that torch.save writes, or else the file."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(
            archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")
        )
