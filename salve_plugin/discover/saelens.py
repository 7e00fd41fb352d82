"""Dictionaries in the file format of SAELens: `cfg.json` and `sae_weights.safetensors`.

SAELens writes a row's code as σ((x − b_dec) W_enc + b_enc), or without subtracting b_dec, and lets
decoder rows have any norm. A `Dictionary` folds b_dec into the encoder's bias and has atoms of unit
norm. Both conversions are exact: where c is the norm of a decoder row, W_enc, b_enc and thresholds
of that latent are multiplied by c, and its codes become c times larger.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.discover.learners.base import Tensors
from salve_plugin.discover.reads import check_dictionary
from salve_plugin.discover.saelens_layout import (
    CONFIG_FILE,
    OWN,
    WEIGHTS_FILE,
    Weights,
    check_weights,
    exported,
)
from salve_plugin.discover.unit_atoms import NORM_TOLERANCE
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.site import Site
from salve_plugin.store.files import usable

UNIT = 1e-6
"""How far norms of single-precision atoms may be from 1 by rounding alone."""

READ_AS = {"standard": "relu_l1", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
"""The learner whose finished dictionary codes as an architecture does."""


def save_saelens(dictionary: Dictionary, folder: str | os.PathLike[str]) -> None:
    """Write a dictionary so that `sae_lens.SAE.load_from_disk(folder)` reads it.

    SAELens then encodes and decodes raw activations as the dictionary does, up to rounding.
    Dictionaries with a threshold are written as `jumprelu`, GBA as `gated`. This is
    `dictionary.save_pretrained(folder)`, but refused where SAELens could not read the result.

    Raises:
        InputError: if SAELens has no architecture for what the learner does, or it has one but not
            for these values (a threshold below zero, a gain of zero).
        WriteError: if the disk is full or not writable; what was there is whole.
    """
    check_dictionary(dictionary)
    exported(dictionary)
    dictionary.save_pretrained(folder)


def load_saelens(folder: str | os.PathLike[str], site: Site | None = None) -> Dictionary:
    """Read a dictionary that SAELens, or `save_saelens`, wrote.

    The architectures `standard`, `topk`, `jumprelu` and `gated` become the learners `relu_l1`,
    `topk`, `jumprelu` and `gated`; hyper-parameters that only matter in training have their
    defaults. Decoder rows that are not of unit norm are divided by their norms, and codes are as
    much larger than SAELens' codes. That is exact for all but TopK, where it would change which
    latents are the largest unless all norms are the same; with `rescale_acts_by_decoder_norm`
    SAELens itself compares and returns the larger codes. Half precision is read as float32.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        site: where in the model the activations are read. By default what `save_saelens` noted,
            else a site `rows` of no model: for `LayerGradFam`, which is told where to read.

    Returns:
        The frozen dictionary; its `meta` holds the architecture and SAELens' metadata.

    Raises:
        ArtifactError: if a file is missing or damaged, or its tensors are not what `cfg.json` says
            or not finite.
        InputError: if the dictionary does something that a `Dictionary` cannot (another
            architecture, normalized or reshaped activations), or does not fit the site.

    Example:
        >>> sae = load_saelens("downloaded")                                    # doctest: +SKIP
        >>> fam = LayerGradFam(net, net.stage4, sae, site=(net.mlp, "out"))     # doctest: +SKIP
    """
    folder = usable(folder)
    config = _config(folder / CONFIG_FILE)
    site = site or _site_of(config)
    _refuse(config, folder / CONFIG_FILE, site)
    architecture = config["architecture"]
    weights = _weights(folder / WEIGHTS_FILE, config)
    norms = torch.linalg.vector_norm(weights["W_dec"].double(), dim=1)
    # There latents are chosen by size: codes scaled one by one would be other choices.
    if architecture == "topk" and not config.get("rescale_acts_by_decoder_norm"):
        norms = _common(norms, folder)
    tensors = _with_unit_atoms(_as_tensors(weights, config), norms, folder)
    options = {"k": config["k"]} if architecture == "topk" else {}
    said = {name: value for name, value in config["metadata"].items() if name != "salve_plugin"}
    meta = {"format": "SAELens", "architecture": architecture, "metadata": said}
    return Dictionary(tensors, create(READ_AS[architecture], options), site, meta)


def _config(path: Path) -> dict[str, Any]:
    """Return the fields of `cfg.json`, in the layout that SAELens has had since version 6."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    texts = ("architecture", "hook_name", "hook_point")
    fields = config if isinstance(config, dict) else {"metadata": 0}
    if not isinstance(fields.get("metadata", {}), dict | None) or any(
        not isinstance(fields.get(name), str | None) for name in texts
    ):
        raise ArtifactError(f"{path} does not hold the fields of a SAELens dictionary")
    for older, newer in (("activation_fn_str", "activation_fn"), ("hook_point", "hook_name")):
        if older in config:
            config[newer] = config.pop(older)
    hook = config.get("hook_name") or ""
    defaults = {
        "architecture": "standard",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if "hook_z" in hook else "none",
        "metadata": {"hook_name": hook} if hook else {},
    }
    # A null in the file stands for the default, as in SAELens.
    return {**defaults, **{name: value for name, value in config.items() if value is not None}}


def _site_of(config: Mapping[str, Any]) -> Site:
    """Return the site that we noted, else one that belongs to no model."""
    own = config["metadata"].get("salve_plugin")
    if isinstance(own, dict) and "site" in own:
        return Site.from_json(own["site"])
    width = config.get("d_in")
    return Site("rows", "", "out", "pooled", width if type(width) is int and width > 0 else 1)


def _refuse(config: Mapping[str, Any], path: Path, site: Site) -> None:
    """Raise unless a dictionary for the site can do what the fields say."""
    architecture = config["architecture"]
    if architecture not in OWN:
        raise InputError(
            f"{path} describes a SAELens dictionary of architecture {architecture!r}; "
            f"salve_plugin reads {sorted(OWN)}"
        )
    ways = {
        "normalize_activations": ("none", False),
        "reshape_activations": ("none",),
        "activation_fn": ("relu",),
        "finetuning_scaling_factor": (False,),
    }
    for name, allowed in ways.items():
        if config.get(name, allowed[0]) not in allowed:
            raise InputError(
                f"{path} has {name} = {config[name]!r}: that changes activations row by row, or by "
                f"numbers that the folder does not hold; a dictionary needs {allowed[0]!r}. Fold "
                "it into the weights with SAELens and save again"
            )
    for name in ("d_in", "d_sae"):
        if type(config.get(name)) is not int:
            raise ArtifactError(f"{path} has {name} = {config.get(name)!r}; expected a number")
    if config["d_in"] != site.width:
        raise InputError(
            f"{path} has d_in = {config['d_in']}, but site '{site.name}' has {site.width} "
            "features; load it for the site that it was trained on"
        )
    k, latents = config.get("k"), config.get("d_sae")
    if architecture == "topk" and not (
        type(k) is int and type(latents) is int and 0 < k <= latents
    ):
        raise ArtifactError(f"{path} has k = {k!r}; expected a whole number from 1 to d_sae")


def _weights(path: Path, config: Mapping[str, Any]) -> Weights:
    """Return the tensors, at least in single precision, after checking names, shapes and values."""
    try:
        weights = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    check_weights(weights, config, str(path))
    kind = torch.promote_types(weights["W_dec"].dtype, torch.float32)
    return {name: tensor.to(kind) for name, tensor in weights.items()}


def _as_tensors(weights: Weights, config: Mapping[str, Any]) -> Tensors:
    """Return the dictionary's tensors, its atoms still of any norm.

    With u = W_encᵀ (x − b_dec), a gate u + b_gate is E x + b_e, and the magnitude eʳ u + b_mag is
    eʳ (E x + b_e) + b_mag − eʳ b_gate.
    """
    encoder = weights["W_enc"].T.contiguous()
    gated = config["architecture"] == "gated"
    bias = weights["b_gate" if gated else "b_enc"].double()
    if config["apply_b_dec_to_input"]:
        # In float64, since the two may all but cancel.
        bias = bias - encoder.double() @ weights["b_dec"].double()
    tensors = {
        "atoms": weights["W_dec"],
        "encoder_weight": encoder,
        "encoder_bias": bias,
        "decoder_bias": weights["b_dec"],
    }
    if gated:
        gain = weights["r_mag"].double().exp()
        # Relative to the gate that E x + b_e is: with its bias before b_dec was folded in.
        magnitude = weights["b_mag"].double() - gain * weights["b_gate"].double()
        tensors |= {"gain": gain, "magnitude_bias": magnitude}
    if "threshold" in weights:  # SAELens rectifies: a threshold below zero does what zero does
        tensors["threshold"] = weights["threshold"].clamp(min=0)
    return tensors


def _common(norms: Tensor, folder: Path) -> Tensor:
    """Return the one norm that all decoder rows have, for each of them."""
    mean = norms.mean()
    if ((norms - mean).abs() > NORM_TOLERANCE * mean).any():
        raise InputError(
            f"decoder rows in {folder} have norms from {float(norms.min()):.6g} to "
            f"{float(norms.max()):.6g}: atoms of norm 1 would change which latents are the k "
            "largest. Train with rescale_acts_by_decoder_norm, or retrain with fit()"
        )
    return mean.expand_as(norms)


def _with_unit_atoms(tensors: Tensors, norms: Tensor, folder: Path) -> Tensors:
    """Return tensors with atoms of unit norm and codes as much larger; unchanged if they are."""
    if not (norms > 0).all():
        raise InputError(
            f"decoder row {int(norms.argmin())} in {folder} is zero: it has no direction. Remove "
            "the latent"
        )
    kind = tensors["atoms"].dtype
    if ((norms - 1).abs() > UNIT).any():
        # The code grows by the norm, and with it all that makes or bounds it. A gain multiplies
        # what has grown already and stays, as does b_d, which no code multiplies.
        factors = {"atoms": 1 / norms, "decoder_bias": None, "gain": None}
        for name, tensor in tensors.items():
            factor = factors.get(name, norms)
            if factor is not None:
                tensors[name] = tensor * (factor if tensor.ndim == 1 else factor[:, None])
    return {name: tensor.to(kind) for name, tensor in tensors.items()}
