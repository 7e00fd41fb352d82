"""The fields and tensors of SAELens' files that stand for a dictionary, to the same bits.

Most of SAELens' tensors are a dictionary's own. In a gated one, SAELens keeps the logarithm of the
gain and a sum with the bias; they are written in double precision, from which the gain and the
summand come back exactly. SAELens itself rounds them to the type that `cfg.json` names.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from salve_plugin.discover.learners import LEARNERS
from salve_plugin.discover.learners.base import Tensors
from salve_plugin.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from salve_plugin.discover.dictionary import Dictionary

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"

Weights = dict[str, Tensor]

SHARED = ("W_dec", "W_enc", "b_dec")
OWN = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""The tensors that SAELens keeps for each architecture besides the shared ones."""


def written_as() -> dict[str, str]:
    """Return the architecture that each learner is written as, for those that have one."""
    return {name: learner.saelens for name, learner in LEARNERS.items() if learner.saelens}


def common_fields(dictionary: "Dictionary", architecture: str) -> dict[str, Any]:
    """Return what `cfg.json` says in every architecture, metadata excepted."""
    return {
        "architecture": architecture,
        "d_in": dictionary.width,
        "d_sae": dictionary.n_latents,
        "dtype": str(dictionary.atoms.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }


def exported(dictionary: "Dictionary") -> tuple[dict[str, Any], Weights]:
    """Return the fields of `cfg.json`, metadata excepted, and SAELens' tensors.

    Raises:
        InputError: if SAELens has no architecture for what the learner does, or its tensors cannot
            stand for these values.
    """
    architecture = written_as().get(dictionary.learner)
    if architecture is None:
        raise InputError(
            f"SAELens cannot represent the dictionaries of learner '{dictionary.learner}'; it can "
            f"represent those of {sorted(written_as())}"
        )
    config = common_fields(dictionary, architecture)
    if architecture == "topk":
        k = dictionary.options["k"]
        assert isinstance(k, int)
        config |= {"k": min(k, dictionary.n_latents), "rescale_acts_by_decoder_norm": False}
    weights = _written(dictionary)
    _check_exact(dictionary, reimported(dictionary.learner, weights))
    return config, weights


def reimported(learner: str, weights: Weights) -> Tensors:
    """Return the tensors of a dictionary from what `exported` made of them."""
    kind = weights["W_dec"].dtype
    tensors = {
        "atoms": weights["W_dec"],
        "encoder_weight": weights["W_enc"].T.contiguous(),
        "decoder_bias": weights["b_dec"],
    }
    if "b_gate" not in weights:
        own = {"threshold": weights["threshold"]} if "threshold" in weights else {}
        return {**tensors, "encoder_bias": weights["b_enc"], **own}
    bias, gain = weights["b_gate"], weights["r_mag"].double().exp()
    # With the gain in the type that the dictionary has it in, as `_written` took it: only so does
    # the summand come back bit for bit.
    summand = (weights["b_mag"].double() - gain.to(kind).double() * bias.double()).to(kind)
    own = {"offset": summand}
    if learner == "gated":
        own = {"gain": gain.to(kind), "magnitude_bias": summand}
    return {**tensors, "encoder_bias": bias, **own}


def check_weights(weights: Weights, config: Mapping[str, Any], file: str) -> None:
    """Raise unless the tensors have the names and shapes that SAELens gives them and are finite.

    Raises:
        ArtifactError: names the tensor in the file.
    """
    names = sorted((*SHARED, *OWN[config["architecture"]]))
    if sorted(weights) != names:
        raise ArtifactError(
            f"{file} holds {sorted(weights)}; a dictionary of architecture "
            f"'{config['architecture']}' has {names}"
        )
    width, latents = config["d_in"], config["d_sae"]
    shapes = {"W_enc": (width, latents), "W_dec": (latents, width), "b_dec": (width,)}
    for name, tensor in sorted(weights.items()):
        shape = shapes.get(name, (latents,))
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ArtifactError(
                f"{name} in {file} is {tensor.dtype} of shape {tuple(tensor.shape)}; {CONFIG_FILE} "
                f"asks for floats of shape {shape}"
            )
        if not tensor.isfinite().all():
            raise ArtifactError(f"{name} in {file} holds NaN or infinite values")


def _written(dictionary: "Dictionary") -> Weights:
    """Return SAELens' tensors, which read the raw activations without subtracting b_dec."""
    t = {name: tensor.detach().cpu() for name, tensor in dictionary.tensors.items()}
    bias = t["encoder_bias"]
    shared = {"W_enc": t["encoder_weight"].T, "W_dec": t["atoms"], "b_dec": t["decoder_bias"]}
    if dictionary.learner == "gba":  # relu(pre + offset), as in the magnitude path of gain 1
        magnitude = t["offset"].double() + bias.double()
        own = {"b_gate": bias, "r_mag": torch.zeros_like(magnitude), "b_mag": magnitude}
        return {**shared, **own}
    if dictionary.learner == "gated":
        gain = t["gain"]
        _all(gain > 0, gain, "gain", "SAELens stores its logarithm")
        # These and the logarithm stay in float64: rounded, they would not give back the
        # dictionary's own values exactly, which `_check_exact` demands.
        magnitude = t["magnitude_bias"].double() + gain.double() * bias.double()
        return {**shared, "b_gate": bias, "r_mag": gain.double().log(), "b_mag": magnitude}
    if "threshold" in t:
        _all(t["threshold"] >= 0, t["threshold"], "threshold", "SAELens rectifies codes")
        return {**shared, "b_enc": bias, "threshold": t["threshold"]}
    return {**shared, "b_enc": bias}


def _all(good: Tensor, values: Tensor, name: str, why: str) -> None:
    """Raise InputError unless every value is good."""
    if not good.all():
        latent = int(good.int().argmin())
        raise InputError(
            f"{name} of latent {latent} is {float(values[latent]):g}: {why}, so that its files "
            "cannot represent this dictionary"
        )


def _check_exact(dictionary: "Dictionary", again: Tensors) -> None:
    """Raise InputError unless the tensors that come back are the dictionary's, bit for bit."""
    for name, tensor in dictionary.tensors.items():
        if tensor.dtype != again[name].dtype or not torch.equal(tensor.cpu(), again[name]):
            raise InputError(
                f"{name} does not come back exactly from the tensors of SAELens (some value is in "
                "double precision, or billions of times smaller than the encoder's bias), so that "
                "its files cannot represent this dictionary"
            )
