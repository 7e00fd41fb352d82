"""A model in timm's own layout for the Hub, proven by loading it again."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from salve_plugin.errors import UnsupportedModelError, WriteError
from salve_timm.create import describe
from salve_timm.probe import probed, quiet

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_MOST_NAMED = 3


@torch.no_grad()
def export_model(model: nn.Module, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` as `timm.create_model` loads them.

    timm then builds the model anew from these files, to be compared in every tensor and in its
    logits: a model that was changed after timm had built it, or is held in float64, has no such
    form. While that is done, memory holds a second model. The same model gives the same bytes.

    Args:
        model: a timm model, in any dtype that float32 can hold.
        folder: where to write.

    Raises:
        UnsupportedModelError: if timm cannot build this model from its configuration.
        WriteError: if the disk is full or the folder cannot be written.
    """
    try:
        _write_weights(model, folder / WEIGHTS)
        config = _write_config(model, folder / CONFIG)
    except (OSError, SafetensorError) as error:
        raise WriteError(
            f"cannot write the model to {folder}: {error}; free some space (TMPDIR chooses the "
            "folder for temporary files), then make the same call again"
        ) from error
    rebuilt = _rebuilt(model, config, folder)
    _compare_tensors(model, rebuilt, folder / WEIGHTS)
    _compare_logits(model, rebuilt)


def _write_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict; the elements go to the file without a copy of the whole."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        # The format holds neither strides (channels_last) nor tensors that share memory.
        storage = tensor.untyped_storage().data_ptr()
        shared = storage in storages
        storages.add(storage)
        tensors[name] = tensor.contiguous().clone() if shared else tensor.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})  # transformers wants to be told


def _write_config(model: nn.Module, path: Path) -> dict[str, Any]:
    from timm.models._hub import save_config_for_hf

    if not getattr(model, "pretrained_cfg", None):
        raise UnsupportedModelError(_no_recipe(model, "timm.create_model did not build it"))
    try:
        save_config_for_hf(model, path)  # type: ignore[arg-type] # older timm only takes a Path
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(_no_recipe(model, str(error))) from error
    config: dict[str, Any] = json.loads(path.read_text())
    # transformers passes the number of classes itself, and fails if the arguments hold it, too.
    # It needs all others: without in_chans it builds another stem, without global_pool it loads
    # and computes other logits.
    arguments = config.get("model_args", {})
    arguments.pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return config


def _rebuilt(model: nn.Module, config: dict[str, Any], folder: Path) -> nn.Module:
    """Return the model as timm builds it from the files."""
    source = {"num_classes": config["num_classes"], "file": str(folder / WEIGHTS)}
    try:
        with torch.random.fork_rng(devices=[]):  # layers are drawn before they are loaded
            built: nn.Module = timm.create_model(
                config["architecture"],
                pretrained=True,
                pretrained_cfg={**config["pretrained_cfg"], **source},
                **config.get("model_args", {}),
            )
    except Exception as error:  # whatever the constructor of an architecture raises
        raise UnsupportedModelError(_no_recipe(model, str(error))) from error
    return built


def _compare_tensors(model: nn.Module, rebuilt: nn.Module, weights: Path) -> None:
    state, rebuilt_state = model.state_dict(), rebuilt.state_dict()
    with safe_open(weights, framework="pt") as file:
        wrong = [
            name
            for name in sorted({*state, *rebuilt_state, *file.keys()})
            if name not in rebuilt_state
            or name not in state
            or not _same(rebuilt_state[name], file.get_tensor(name), state[name])
        ]
    if wrong:
        doubles = any(tensor.dtype == torch.float64 for tensor in state.values())
        why = "timm builds float32, which cannot hold float64" if doubles else "they differ"
        raise UnsupportedModelError(
            _no_recipe(model, f"{why}: {wrong[:_MOST_NAMED]} and {len(wrong)} tensors in all")
        )


def _same(loaded: Tensor, written: Tensor, wanted: Tensor) -> bool:
    """Tell whether a loaded tensor, in the dtype that is wanted, is what was wanted and written."""
    if loaded.shape != wanted.shape or written.dtype != wanted.dtype:
        return False
    wanted = wanted.cpu()
    return torch.equal(_bits(loaded.to(wanted.dtype)), _bits(wanted)) and torch.equal(
        _bits(written), _bits(wanted)
    )


def _bits(tensor: Tensor) -> Tensor:
    # As bytes: among numbers NaN is not itself, and -0.0 is 0.0.
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _compare_logits(model: nn.Module, rebuilt: nn.Module) -> None:
    """Raise unless both compute the same: pooling and activations are in no tensor."""
    first = next(model.parameters())
    rebuilt = rebuilt.to(first.device, first.dtype)
    with quiet(model), quiet(rebuilt):
        images, logits = probed(model, model)
        rebuilt_logits = rebuilt(images)
    logits, rebuilt_logits = (
        output[0] if isinstance(output, tuple) else output for output in (logits, rebuilt_logits)
    )
    # On one device the same operations on the same numbers; the rest is for its own freedom.
    tolerance = 64 * torch.finfo(first.dtype).eps * logits.abs().max()
    if rebuilt_logits.shape != logits.shape or not bool(
        ((rebuilt_logits - logits).abs() <= tolerance).all()
    ):
        raise UnsupportedModelError(_no_recipe(model, "it computes other logits"))


def _no_recipe(model: nn.Module, why: str) -> str:
    why = " ".join(why.split())[:300]
    return (
        f"timm {timm.__version__} does not load {type(model).__name__} "
        f"('{describe(model)['architecture']}') from its own configuration as it is here ({why}). "
        "Build the model with timm.create_model(name, ...), leave its layers as they are, load the "
        "weights into it, and keep it in float32, float16 or bfloat16; older versions of timm do "
        "not record every argument. Without the model the edit can still be shared: "
        "artifact.push_to_hub(...)"
    )
