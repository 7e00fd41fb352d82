"""The model card's metadata: the block of YAML that the Hub reads."""

import tempfile
from pathlib import Path
from typing import Any

from salve_plugin.errors import InputError
from salve_plugin.share.card_text import Config

CARD_FILE = "README.md"


def front_matter(config: Config) -> dict[str, object]:
    """Return the card's metadata: the Hub's vocabulary, only what is known."""
    known = config["base"]["description"]
    metadata: dict[str, object] = {
        "library_name": "salve_plugin",
        "pipeline_tag": "image-classification",
        "tags": ["salve_plugin", "model-editing", "sparse-autoencoder", "interpretability"],
    }
    # A relation without the model that it relates to would be an invalid card.
    if known.get("hf_hub_id"):
        metadata["base_model"] = known["hf_hub_id"]
        metadata["base_model_relation"] = "adapter"
    if known.get("license"):
        metadata["license"] = known["license"]
    return metadata


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
