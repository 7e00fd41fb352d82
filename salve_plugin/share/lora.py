"""Low-rank updates as a LoRA adapter in PEFT's two files, and back."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.making import edit_at
from salve_plugin.control.operators import LowRankUpdate, Role
from salve_plugin.control.operators.base import real
from salve_plugin.control.provenance import Provenance
from salve_plugin.errors import InputError, ReadError, UnsupportedModelError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.kinds import several
from salve_plugin.store.files import usable
from salve_plugin.store.folders import save_into
from salve_plugin.store.place import FileChange

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_PLAIN = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "revision", "target_modules", "target_parameters",
    "task_type", "use_rslora",
})  # fmt: skip
"""Fields of PEFT's configuration that leave W + scaling B A as it is, or are read here."""
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
"""What A and B began as, where that has not changed W; `pissa` and `olora`, for example, have."""


def save_lora(edits: Sequence[Edit], folder: str | Path) -> Path:
    """Write low-rank updates of Linear layers as one LoRA adapter, as PEFT lays it out.

    Args:
        edits: each a `LowRankUpdate` of all outputs of a Linear, of different layers, without a
            shift of the bias. All are written with the largest rank among them, padded with zeros.
        folder: created if missing; files of these names are replaced.

    Returns:
        The folder.

    Raises:
        InputError: if an edit is something that a LoRA cannot express.
        WriteError: if the folder cannot be written.
    """
    import safetensors.torch

    # The update first: a change of a site has as many targets as the site has readers.
    edits = several(edits, "edits", "a list of edits")
    updates = [(edit, _update_of(edit).lora()) for edit in edits]
    layers = {_layer_of(edit): pair for edit, pair in updates}
    if not layers or len(layers) < len(edits):
        raise InputError(f"a LoRA has at least one layer, each once; got {sorted(layers)}")
    rank = max(len(lora_a) for lora_a, _ in layers.values())
    tensors: dict[str, Tensor] = {}
    for layer, (lora_a, lora_b) in layers.items():
        whole_a, whole_b = (
            lora_a.new_zeros(rank, lora_a.shape[1]),
            lora_b.new_zeros(len(lora_b), rank),
        )
        # PEFT has one rank for all layers; rows and columns of zeros add nothing.
        whole_a[: len(lora_a)], whole_b[:, : len(lora_a)] = lora_a, lora_b
        tensors[f"base_model.model.{layer}.lora_A.weight"] = whole_a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = whole_b
    config = {
        "base_model_name_or_path": edits[0].base.description.get("hf_hub_id"),
        "bias": "none",
        # alpha / r = 1: the factors are the update as it is.
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(layers),
        "task_type": None,
    }
    written = (json.dumps(config, indent=2) + "\n").encode()
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    return save_into(folder, lambda _: FileChange({WEIGHTS_FILE: weights, CONFIG_FILE: written}))


def load_lora(hooked: HookedModel, folder: str | Path) -> list[Edit]:
    """Return a LoRA adapter as edits of an attached model, one a layer; nothing is applied.

    Args:
        hooked: the model that the adapter was trained for.
        folder: with PEFT's `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ReadError: if a file is missing or cannot be read.
        InputError: if it is another kind of adapter, an empty one, its two files contradict each
            other, or it does not fit the model.
        UnsupportedModelError: if a layer is at no site of the model.
    """
    check_attached(hooked)
    folder = usable(folder)
    config, tensors = _read(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        matched = _KEY.fullmatch(name)
        if matched is None:
            raise InputError(f"tensor {name[:200]!r} is no part of a LoRA of linear layers")
        pair = parts.setdefault(matched[1], {})
        if matched[2] in pair:
            raise InputError(
                f"lora_{matched[2]} of '{matched[1]}' is there twice, with and without '.default'; "
                "remove the one that is not meant"
            )
        pair[matched[2]] = tensor
    if not parts:
        raise InputError(
            f"{folder / WEIGHTS_FILE} holds no tensors, so that the adapter would do nothing; was "
            "it saved from a part of a model whose weights were elsewhere? Save it anew"
        )
    edits = []
    for layer, pair in sorted(parts.items()):
        if (
            set(pair) != {"A", "B"}
            or pair["A"].ndim != 2
            or not len(pair["A"])
            or pair["B"].shape[1:] != (len(pair["A"]),)
        ):
            raise InputError(
                f"lora_A and lora_B of '{layer}' are not both there, or are no matrices that fit, "
                "as those of a linear layer are"
            )
        rank = len(pair["A"])
        if config.get("r", rank) != rank:
            raise InputError(
                f"lora_A of '{layer}' has rank {rank}, {CONFIG_FILE} says r = {config['r']!r:.40}, "
                "by which PEFT divides; the two files do not belong together"
            )
        # PEFT divides by the rank, rank-stabilized LoRA (arXiv:2312.03732) by its root.
        scaling = real(config["lora_alpha"], "lora_alpha") / (
            rank**0.5 if config.get("use_rslora") else rank
        )
        update = LowRankUpdate.from_lora(pair["A"], pair["B"], scaling)
        site, role = _site_of(hooked, layer)
        note = Provenance("given", note=f"LoRA of rank {rank}")
        edits.append(edit_at(hooked, site, update, role=role, layer=layer, provenance=note))
    return edits


def _layer_of(edit: Edit) -> str:
    (target,) = edit.targets
    whole = edit.rows is None and target.outputs is None
    if target.view != "linear" or not whole:
        raise InputError(f"{edit!r} is not of a whole Linear, so that no LoRA expresses it")
    return target.weight.rpartition(".")[0]


def _update_of(edit: Edit) -> LowRankUpdate:
    if not isinstance(edit, Edit) or not isinstance(edit.operator, LowRankUpdate):
        raise InputError(f"{edit!r:.200} is no low-rank update; only those are LoRAs")
    return edit.operator


def _site_of(hooked: HookedModel, layer: str) -> tuple[str, Role]:
    """Return the site that a layer reads, or else the one that it writes."""
    for name, site in hooked.sites.items():
        if layer in site.readers:
            return name, "reader"
    for name, site in hooked.sites.items():
        if layer in site.writers:
            return name, "writer"
    raise UnsupportedModelError(
        f"layer '{layer}' of the adapter reads or writes no site of this model; its sites' layers "
        f"are {sorted({path for site in hooked.sites.values() for path in site.readers})[:20]}"
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import safetensors.torch

    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
        tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # the libraries have errors of their own for what is no such file
        raise ReadError(f"cannot read a LoRA adapter in {folder}: {error}") from error
    plain = (
        isinstance(config, dict)
        and config.get("peft_type") == "LORA"
        and isinstance(config.get("lora_alpha"), int | float)
    )
    # Any other field that is set may change what A and B stand for, in a later PEFT, too.
    used = sorted(name for name in config if config[name] and name not in _PLAIN) if plain else []
    if not plain or used or config.get("bias", "none") != "none":
        raise InputError(
            f"{folder / CONFIG_FILE} is of another kind than a plain LoRA without biases"
            + (f": it uses {used}" if used else "")
        )
    if config.get("init_lora_weights") not in _INITIAL:
        raise InputError(
            f"{folder / CONFIG_FILE} has init_lora_weights {config['init_lora_weights']!r}, which "
            "took a part of the weights out of the model that the adapter was trained on; save it "
            "with PEFT's path_initial_model_for_weight_conversion, as a plain LoRA"
        )
    return config, tensors
