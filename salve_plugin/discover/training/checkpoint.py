"""A run that was killed goes on where it was, to the same bits.

What a step depends on is either in the file or follows from its number. In the file: all tensors,
those too that are kept and not trained (thresholds, densities); Adam's moments; how long each
latent has been silent; the weight of the penalty; the learning rate, and the end, which an early
stop moves. From the number: which rows come next, since an epoch's order is drawn from seed and
epoch, and what the learner draws, since each step has a generator of its own. So no generator's
state is kept, and none can be forgotten.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from salve_plugin.discover.training.loop import State
from salve_plugin.errors import InputError, ReadError, WriteError
from salve_plugin.store.files import write_atomically

FILE = "training.checkpoint"


def store(folder: Path, state: State, identity: dict[str, Any]) -> None:
    """Write the state into `folder`, replacing the one before as a whole.

    Args:
        folder: is made if missing.
        state: of the run.
        identity: what the run is determined by; only the same run may continue it.

    Raises:
        WriteError: if the disk is full or not writable; the checkpoint before stays.
    """
    fields = {
        "identity": identity,
        "learning_rate": state.learning_rate,
        "step": state.step,
        "stop": state.stop,
        "decay_from": state.decay_from,
        "best": state.best if state.best[1] else None,  # it starts at -∞, which JSON has not
        "control": asdict(state.control),
    }
    text = json.dumps(fields, sort_keys=True, allow_nan=False).encode()
    tensors = {f"tensor.{name}": value.detach() for name, value in state.tensors.items()}
    for name, value in state.tensors.items():
        for moment, kept in state.optimizer.state.get(value, {}).items():
            tensors[f"{moment}.{name}"] = kept
    # The fields are in the file of the tensors, so that no kill can come between the two.
    tensors |= {
        "silent": state.silent,
        # A copy, since torch warns of memory that cannot be written to, as that of `bytes`.
        "fields": torch.frombuffer(bytearray(text), dtype=torch.uint8),
    }
    # Copies, because safetensors refuses tensors that share memory, as views do.
    content = save({name: value.contiguous().clone() for name, value in tensors.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {folder}: {error.strerror}") from error
    # The digest in front, because safetensors has none: a flipped bit in a moment would be trained
    # on unnoticed.
    write_atomically(folder / FILE, hashlib.sha256(content).digest() + content)


def restore(folder: Path, state: State, identity: dict[str, Any]) -> bool:
    """Bring a fresh state to where the checkpoint in `folder` left it, if there is one.

    Returns:
        Whether there was one.

    Raises:
        ReadError: if it is damaged.
        InputError: if it belongs to a run with other arguments or data.
    """
    path = folder / FILE
    if not path.exists():
        return False
    tensors = _read(path)
    fields = json.loads(tensors.pop("fields").numpy().tobytes())
    now = json.loads(json.dumps(identity))  # as it would have been read: lists, no tuples
    other = [name for name in now if fields["identity"].get(name) != now[name]]
    if other:
        raise InputError(
            f"the checkpoint {path} belongs to a run with other {', '.join(other)}; delete it, or "
            "name another folder"
        )
    shapes = {f"tensor.{name}": value.shape for name, value in state.tensors.items()}
    if shapes != {name: value.shape for name, value in tensors.items() if name in shapes}:
        raise ReadError(
            f"the checkpoint {path} is of another version of salve_plugin: it has not the tensors "
            "that this one trains; delete it to start again"
        )
    with torch.no_grad():
        for name, value in state.tensors.items():
            value.copy_(tensors[f"tensor.{name}"])  # in place: the optimizer knows this tensor
            suffix = f".{name}"
            moments = {
                key.removesuffix(suffix): kept
                for key, kept in tensors.items()
                if key.endswith(suffix) and not key.startswith("tensor.")
            }
            # Adam makes its moments in its first step, unless they are there already.
            if moments:
                state.optimizer.state[value].update(moments)
    state.silent = tensors["silent"]
    state.step, state.stop = fields["step"], fields["stop"]
    state.decay_from, state.learning_rate = fields["decay_from"], fields["learning_rate"]
    if fields["best"]:
        state.best = (fields["best"][0], fields["best"][1])
    state.control.weight, state.control.l0 = fields["control"]["weight"], fields["control"]["l0"]
    return True


def discard(folder: Path) -> None:
    """Remove the checkpoint of a run that is complete."""
    (folder / FILE).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        digest, content = content[:32], content[32:]
        if hashlib.sha256(content).digest() != digest:
            raise ReadError(
                f"the checkpoint {path} is damaged: its SHA-256 is not what was written; delete it "
                "to start again"
            )
        return load(content)
    except (OSError, SafetensorError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(
            f"cannot read the checkpoint {path}: {error}; delete it to start again"
        ) from error
