"""A dictionary as two files, `cfg.json` and `sae_weights.safetensors`, sealed like an artifact.

Where SAELens has an architecture that codes as the dictionary does, the files are SAELens' own,
and from its tensors ours come back to the last bit. Otherwise the weights file holds our tensors
by our names, and the architecture is called `salve_plugin.<learner>`, which SAELens refuses as
unknown. In both, `metadata.salve_plugin` says what SAELens does not ask for: learner, options,
site, meta, digests, and the seal over the file itself.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
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
from salve_plugin.share.canonical import Json, dump, parse_json, readable_json
from salve_plugin.share.dictionary_fields import fields_of, rebuilt
from salve_plugin.share.folder import Reader, sha256_bytes
from salve_plugin.share.manifest import (
    check_names,
    check_seal,
    check_version,
    entry_of,
    read_listed,
)
from salve_plugin.share.producer import producer
from salve_plugin.share.schema import check_schema
from salve_plugin.share.tensor_file import MAX_TENSOR_FILE_BYTES, decode_tensors, encode_tensors

FORMAT_VERSION = "1.0"
SCHEMA_NAME = "dictionary.schema.json"
MAX_CONFIG_BYTES = 4 * 2**20
SAELENS = "6.54.12"
"""The version of SAELens whose layout this is; it asks for it and reads older layouts otherwise."""

# Who wrote it down and how: not what the dictionary is.
_CIRCUMSTANCES = {"files", "format_version", "manifest_sha256", "producer"}


def packed(dictionary: Dictionary) -> tuple[Json, dict[str, bytes]]:
    """Return the fields of `cfg.json`, its seal excepted, and the bytes of both files.

    Raises:
        InputError: if the dictionary could not be read back, for example because of its meta.
    """
    try:
        fields, weights = exported(dictionary)
    except InputError:
        fields, weights = _by_own_names(dictionary)
    config = _described(dictionary, fields, dictionary.digest())
    data = encode_tensors(weights)
    config["metadata"]["sae_lens_version"] = SAELENS
    own = config["metadata"]["salve_plugin"]
    own |= {
        "files": {WEIGHTS_FILE: entry_of(data)},
        "format_version": FORMAT_VERSION,
        "producer": producer(),
    }
    digest = sha256_bytes(readable_json(config))
    sealed = {
        **config,
        "metadata": {
            **config["metadata"],
            "salve_plugin": {**own, "manifest_sha256": digest},
        },
    }
    files = {WEIGHTS_FILE: data, CONFIG_FILE: readable_json(sealed)}
    # Whatever is written can be read: the reader's own checks are the writer's.
    try:
        read_dictionary(lambda name, _: files[name])
    except ArtifactError as error:
        raise InputError(f"the dictionary could not be read back: {error}") from error
    return config, files


def read_config(data: bytes) -> dict[str, Any]:
    """Return the fields in the bytes of `cfg.json`, all but what only the tensors can show.

    Raises:
        ArtifactError: if it is a dictionary of another program or of a newer format, a field is
            missing, unknown or ill-formed, or a bit differs from what was written.
    """
    config: dict[str, Any] = parse_json(data, CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES)
    metadata = config.get("metadata")
    own = metadata.get("salve_plugin") if isinstance(metadata, dict) else None
    if not isinstance(own, dict):
        raise ArtifactError(
            f"{CONFIG_FILE} has no 'salve_plugin' in its metadata: salve_plugin did not write it. "
            "A dictionary of SAELens is read from a local folder with "
            "salve_plugin.load_saelens(folder, site)"
        )
    check_version(own.get("format_version"), file=CONFIG_FILE)
    check_seal(data, own.get("manifest_sha256"), file=CONFIG_FILE, depth=3)
    check_schema(config, SCHEMA_NAME)
    return config


def read_dictionary(read: Reader) -> Dictionary:
    """Return a dictionary from its files, every promise of the format checked.

    Args:
        read: returns the bytes of a file by name, see `folder_reader`.

    Raises:
        ArtifactError: says what was found, what was expected and what to do.
    """
    config = read_config(read(CONFIG_FILE, MAX_CONFIG_BYTES))
    own = config["metadata"]["salve_plugin"]
    entry = own["files"][WEIGHTS_FILE]
    data = read_listed(read, WEIGHTS_FILE, entry, MAX_TENSOR_FILE_BYTES, manifest=CONFIG_FILE)
    weights = decode_tensors(data, WEIGHTS_FILE)
    tensors: Mapping[str, Tensor] = weights
    if config["architecture"] in OWN:
        check_names(weights, (*SHARED, *OWN[config["architecture"]]), f"tensors of {WEIGHTS_FILE}")
        check_weights(weights, config, WEIGHTS_FILE)
        tensors = reimported(own["learner"], weights)
    dictionary = rebuilt(own["learner"], own, tensors, own["digest"])
    _check_consistency(config, weights, dictionary)
    return dictionary


def _by_own_names(dictionary: Dictionary) -> tuple[dict[str, Any], Weights]:
    """Return what `exported` does where SAELens has no architecture for the dictionary."""
    tensors = {name: tensor.detach().cpu() for name, tensor in dictionary.tensors.items()}
    return common_fields(dictionary, f"salve_plugin.{dictionary.learner}"), tensors


def _described(dictionary: Dictionary, fields: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """Return what `cfg.json` says about a dictionary, circumstances excepted."""
    own = {**fields_of(dictionary), "digest": digest, "learner": dictionary.learner}
    return {
        **fields,
        "metadata": {
            "hook_name": dictionary.site.name,
            "sae_lens_training_version": None,
            "salve_plugin": own,
        },
    }


def _check_consistency(config: dict[str, Any], weights: Weights, dictionary: Dictionary) -> None:
    """Raise unless both files say exactly what the dictionary is, to SAELens too."""
    written = exported if config["architecture"] in OWN else _by_own_names
    try:
        fields, tensors = written(dictionary)
        derived = _described(dictionary, fields, config["metadata"]["salve_plugin"]["digest"])
    except InputError as error:
        raise ArtifactError(f"the dictionary contradicts itself: {error}") from error
    metadata = {**config["metadata"]}
    del metadata["sae_lens_version"]
    own = metadata["salve_plugin"]
    metadata["salve_plugin"] = {
        name: value for name, value in own.items() if name not in _CIRCUMSTANCES
    }
    if dump(derived) != dump({**config, "metadata": metadata}):
        raise ArtifactError(
            f"{CONFIG_FILE} contradicts {WEIGHTS_FILE}: its fields do not follow from the "
            "dictionary; get it again"
        )
    wrong = [name for name, tensor in tensors.items() if not _same(tensor, weights[name])]
    if wrong:
        raise ArtifactError(
            f"{WEIGHTS_FILE} contradicts itself: {wrong} do not follow from the dictionary; get it "
            "again"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether tensors are equal up to what logarithms of other platforms may differ by."""
    if one.dtype != other.dtype or torch.equal(one, other):
        return one.dtype == other.dtype
    return torch.allclose(one.double(), other.double(), rtol=1e-12, atol=0)
