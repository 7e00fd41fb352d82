"""The model card's metadata: the block of YAML that the Hub reads."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from salve_plugin.errors import InputError
from salve_plugin.share.card_license import license_fields
from salve_plugin.share.card_results import TASK, merged_index, model_index
from salve_plugin.share.card_text import Config, title

CARD_FILE = "README.md"
REPO_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
Relation = Literal["adapter", "finetune"]
"""How the Hub calls what needs the base model, and what holds it in changed form."""
_RESULTS = "model-index"
_LICENSE = ("license", "license_name", "license_link")


def front_matter(config: Config) -> dict[str, Any]:
    """Return the card's metadata: the Hub's vocabulary, only what is known."""
    known = config["base"]["description"]
    metadata: dict[str, Any] = {
        "library_name": "salve_plugin",
        "pipeline_tag": TASK,
        "tags": ["salve_plugin", "model-editing", "sparse-autoencoder", "interpretability"],
    }
    relation: Relation = "finetune" if config.get("merged") else "adapter"
    metadata |= base_fields(known, relation) | license_fields(known.get("license"))
    index = model_index(config, title(config))
    return metadata if index is None else {**metadata, _RESULTS: index}


def base_fields(known: Mapping[str, Any], relation: Relation = "adapter") -> dict[str, str]:
    """Return the base model as metadata of a card, from its description; nothing if not known."""
    # A relation without the model that it relates to would be an invalid card.
    base = known.get("hf_hub_id")
    if isinstance(base, str) and re.fullmatch(REPO_ID, base):
        return {"base_model": base, "base_model_relation": relation}
    return {}


def merged_metadata(
    existing: Mapping[str, Any], ours: Mapping[str, Any], old: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a card's metadata brought up to date, with everything that people wrote.

    Tags are united, a license is never replaced, results of other measures stay. What still is
    as this library wrote it before is nobody's words and follows the artifact.

    Args:
        existing: what the card says.
        ours: what this library writes now.
        old: what it wrote for what was there before; empty if nothing was.
    """
    kept = {key: value for key, value in existing.items() if key not in old or value != old[key]}
    if any(kept.get(key) for key in _LICENSE):
        ours = {key: value for key, value in ours.items() if key not in _LICENSE}
    fresh = {**kept, **ours, "tags": _united(existing, ours, old)}
    index = merged_index(existing.get(_RESULTS), ours.get(_RESULTS), old.get(_RESULTS))
    fresh = {**fresh, _RESULTS: index} if index else fresh
    in_their_order = {key: fresh[key] for key in existing if key in fresh}
    return {**in_their_order, **fresh}


def _united(*metadata: Mapping[str, Any]) -> list[Any]:
    """Return people's tags and ours, without those that only an earlier artifact had."""
    there, ours, old = (_tags(fields.get("tags")) for fields in metadata)
    kept = [tag for tag in there if tag in ours or tag not in old]
    return [*kept, *(tag for tag in ours if tag not in kept)]


def _tags(tags: object) -> list[Any]:
    return tags if isinstance(tags, list) else [tags] if tags else []


def read_metadata(card: bytes) -> dict[str, Any]:
    """Return the metadata of a `README.md`; empty if it has none.

    Raises:
        InputError: if the file is not UTF-8 or its metadata are not readable YAML.
    """
    from huggingface_hub.repocard import metadata_load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CARD_FILE
        path.write_bytes(card)
        try:
            loaded: dict[str, Any] | None = metadata_load(path)
        except Exception as error:  # YAML's and the Hub client's many kinds
            raise InputError(
                f"{CARD_FILE}: its metadata (the block between the '---' lines) cannot be read: "
                f"{error}; repair the file or move it away, then save again"
            ) from error
        return loaded or {}


def with_metadata(card: bytes, metadata: dict[str, Any]) -> bytes:
    """Return a `README.md` with other metadata and the same text, to the byte."""
    from huggingface_hub.repocard import metadata_save

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CARD_FILE
        path.write_bytes(card)
        metadata_save(path, metadata)
        return path.read_bytes()
