"""A dictionary as two files, `cfg.json` and `sae_weights.safetensors`, sealed.

Where SAELens has an architecture that codes as the dictionary does, the files are SAELens' own,
and from its tensors ours come back to the last bit. Otherwise the weights file holds our tensors
by our names, and the architecture is called `salve_plugin.<learner>`, which SAELens refuses as
unknown. In both, `metadata.salve_plugin` says what SAELens does not ask for: learner, options,
site, meta, digests, and the seal over the file itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from msgspec import UNSET, Meta, UnsetType
from torch import Tensor

from salve_plugin.discover.dictionary_card import dictionary_card
from salve_plugin.discover.learners.base import Tensors
from salve_plugin.discover.saelens_layout import (
    CONFIG_FILE,
    OWN,
    SHARED,
    WEIGHTS_FILE,
    Weights,
    check_weights,
    common_fields,
    exported,
    reimported,
)
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.site import Site
from salve_plugin.store.json import Json, check_json
from salve_plugin.store.producer import Producer
from salve_plugin.store.record import Record, Sha256, as_json
from salve_plugin.store.seal import FileEntry, Format, Version, identity_fields
from salve_plugin.store.tensors import check_names, decode_tensors, encode_tensors

if TYPE_CHECKING:
    from salve_plugin.discover.dictionary import Dictionary

SAELENS = "6.54.12"
"""The version of SAELens whose layout this is; it asks for it and reads older layouts otherwise."""

Size = Annotated[int, Meta(ge=1, le=1_000_000_000)]
LearnerName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$(?!\n)")]
OptionName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$(?!\n)")]
Option = (
    Annotated[str, Meta(max_length=1000)]
    | Annotated[list[int | float], Meta(max_length=1000)]
    | int
    | float
    | bool
    | None
)
Options = Annotated[dict[OptionName, Option], Meta(max_length=100)]
TrainingNotes = Annotated[dict[str, Any], Meta(max_length=1000)]
# What is always so in the files that we write; a reader must not have to guess.
Never = Annotated[bool, Meta(extra_json_schema={"const": False})]


@dataclass(frozen=True)
class DictionaryFields(Record):
    """What describes a dictionary beside its tensors and its learner's name.

    Attributes:
        meta: how it was trained, for people.
        options: the learner's hyper-parameters.
        site: where in the model the activations are read.
    """

    meta: TrainingNotes
    options: Options
    site: Site


@dataclass(frozen=True)
class SealedDictionary(DictionaryFields):
    """`metadata.salve_plugin` in `cfg.json`: what the dictionary is, and the seal of both files.

    Attributes:
        digest: identity: of tensors, learner, options and site, see `Dictionary.digest`.
        files: the weights file.
        format_version: major and minor number; a reader refuses another major number.
        learner: a name in the reader's own list.
        manifest_sha256: SHA-256 of this file without the one line that holds this field.
        producer: the program that wrote the dictionary.
    """

    digest: Sha256
    files: Annotated[dict[Literal["sae_weights.safetensors"], FileEntry], Meta(min_length=1)]
    format_version: Version
    learner: LearnerName
    manifest_sha256: Sha256
    producer: Producer


@dataclass(frozen=True)
class DictionaryMetadata(Record):
    """`metadata` in `cfg.json`: the name of the site, and whose layout the file has."""

    hook_name: Annotated[str, Meta(min_length=1, max_length=500)]
    sae_lens_training_version: None
    sae_lens_version: Annotated[str, Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$(?!\n)")]
    salve_plugin: SealedDictionary


@dataclass(frozen=True)
class DictionaryManifest(Record):
    """`cfg.json` of a dictionary, in the layout of SAELens, which reads it where it can.

    Attributes:
        apply_b_dec_to_input: false: the pre-bias is part of the encoder's bias.
        architecture: one of SAELens', whose tensors the weights file then holds; or `salve_plugin.`
            and the learner: the file holds the dictionary's tensors by their own names.
        d_in: features.
        d_sae: latents.
        device: "cpu".
        dtype: of the tensors.
        metadata: whose file this is.
        normalize_activations: "none".
        reshape_activations: "none".
        k: of architecture `topk` only.
        rescale_acts_by_decoder_norm: false, of architecture `topk` only: atoms have unit norm.
    """

    apply_b_dec_to_input: Never
    architecture: Annotated[
        str,
        Meta(
            pattern=r"^(gated|jumprelu|standard|topk|salve_plugin\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,99})$"
            r"(?!\n)"
        ),
    ]
    d_in: Size
    d_sae: Size
    device: Literal["cpu"]
    dtype: Literal["bfloat16", "float16", "float32", "float64"]
    metadata: DictionaryMetadata
    normalize_activations: Literal["none"]
    reshape_activations: Literal["none"]
    k: Size | UnsetType = UNSET
    rescale_acts_by_decoder_norm: Never | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Check what is always false.

        Raises:
            InputError: if it is true.
        """
        if self.apply_b_dec_to_input or self.rescale_acts_by_decoder_norm is True:
            raise InputError("apply_b_dec_to_input or rescale_acts_by_decoder_norm is not false")


DICTIONARY = Format(
    name="dictionary",
    title="dictionary",
    manifest=CONFIG_FILE,
    record=DictionaryManifest,
    card=dictionary_card,
    inside=("metadata", "salve_plugin"),
    foreign="A dictionary of SAELens is read from a local folder with "
    "salve_plugin.load_saelens(folder, site)",
    max_bytes=4 * 2**20,
)


def fields_of(dictionary: "Dictionary") -> Json:
    """Return options, site and meta as JSON.

    Raises:
        InputError: if `meta` holds something that JSON cannot.
    """
    meta = as_json(dictionary.meta)
    try:
        check_json(meta)
    except InputError as error:
        raise InputError(
            f"a dictionary's meta must hold finite plain JSON values: {error}"
        ) from error
    return {"meta": meta, "options": dictionary.options, "site": dictionary.site.to_json()}


def manifest_of(dictionary: "Dictionary") -> tuple[Json, bytes]:
    """Return the fields of `cfg.json`, all but its seal, and the bytes of the weights file.

    Raises:
        InputError: if `meta` holds something that JSON cannot.
    """
    # SAELens' own layout wherever it can hold the dictionary to the bit, ours for the others.
    try:
        fields, weights = exported(dictionary)
    except InputError:
        fields, weights = _by_own_names(dictionary)
    config = _described(dictionary, fields)
    config["metadata"]["sae_lens_version"] = SAELENS
    return config, encode_tensors(weights)


def tensors_of(config: Mapping[str, Any], data: bytes) -> tuple[Weights, Tensors]:
    """Return the tensors of a weights file, by the names in the file and by the dictionary's own.

    Raises:
        ArtifactError: if they are not those of the architecture.
    """
    weights = decode_tensors(data, WEIGHTS_FILE)
    if config["architecture"] not in OWN:
        return weights, weights
    check_names(weights, (*SHARED, *OWN[config["architecture"]]), f"tensors of {WEIGHTS_FILE}")
    check_weights(weights, config, WEIGHTS_FILE)
    return weights, reimported(DICTIONARY.own(config)["learner"], weights)


def check_consistent(config: Mapping[str, Any], weights: Weights, dictionary: "Dictionary") -> None:
    """Raise unless both files say exactly what the dictionary is, to SAELens too.

    Raises:
        ArtifactError: names what does not follow.
    """
    # Written again from what was read: each of the two files must be what the dictionary gives.
    written = exported if config["architecture"] in OWN else _by_own_names
    with DICTIONARY.contradictions():
        fields, tensors = written(dictionary)
        derived = _described(dictionary, fields)
    sealed = DICTIONARY.own(config)
    own = {**identity_fields(sealed), "digest": sealed["digest"]}
    metadata = {**config["metadata"], "salve_plugin": own}
    del metadata["sae_lens_version"]  # whose layout it is, not what the dictionary is
    said = {**config, "metadata": metadata}
    # A None for each field that does not follow from the dictionary: such a field is one too many.
    DICTIONARY.check_derived({**dict.fromkeys(said), **derived}, said, files=WEIGHTS_FILE)
    wrong = [name for name, tensor in tensors.items() if not _same(tensor, weights[name])]
    if wrong:
        raise ArtifactError(
            f"{WEIGHTS_FILE} contradicts itself: {wrong} do not follow from the dictionary; it was "
            "changed by hand"
        )


def _by_own_names(dictionary: "Dictionary") -> tuple[dict[str, Any], Weights]:
    """Return what `exported` does where SAELens has no architecture for the dictionary."""
    tensors = {name: tensor.detach().cpu() for name, tensor in dictionary.tensors.items()}
    return common_fields(dictionary, f"salve_plugin.{dictionary.learner}"), tensors


def _described(dictionary: "Dictionary", fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `cfg.json` says about a dictionary, circumstances excepted."""
    own = {**fields_of(dictionary), "digest": dictionary.digest, "learner": dictionary.learner}
    metadata = {
        "hook_name": dictionary.site.name,
        "sae_lens_training_version": None,
        "salve_plugin": own,
    }
    return {**fields, "metadata": metadata}


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether tensors are equal up to what logarithms of other platforms may differ by."""
    if one.dtype != other.dtype or torch.equal(one, other):
        return one.dtype == other.dtype
    return torch.allclose(one.double(), other.double(), rtol=1e-12, atol=0)
