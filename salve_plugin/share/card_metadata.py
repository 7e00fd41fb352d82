"""The metadata of a card, in the Hub's vocabulary, from an edit's or a bundle's manifest."""

import re
from collections.abc import Mapping
from typing import Any

from salve_plugin.share.card_license import license_fields
from salve_plugin.store.card import Relation, base_fields
from salve_plugin.store.model_index import Index

Config = Mapping[str, Any]
"""A manifest that passed its checks."""

TASK = "image-classification"
NO_HUB_DATASET = "custom"
"""The dataset's `type`, which the Hub requires, where no dataset of the Hub is named."""


def described_base(config: Config) -> Mapping[str, Any]:
    """Return how the adapter describes the base, from an edit's manifest or a bundle's."""
    base = config["base"] if "base" in config else config["edit"]["base"]
    description: Mapping[str, Any] = base["description"]
    return description


def front_matter(config: Config, model_name: str) -> dict[str, Any]:
    """Return the card's metadata: the Hub's vocabulary, only what is known."""
    known = described_base(config)
    metadata: dict[str, Any] = {
        "library_name": "salve_plugin",
        "pipeline_tag": TASK,
        "tags": ["salve_plugin", "model-editing", "sparse-autoencoder", "interpretability"],
    }
    # With the whole model beside the edit, what lies there is a model of its own.
    relation: Relation = "finetune" if config.get("merged") else "adapter"
    metadata |= base_fields(known, relation) | license_fields(known.get("license"))
    index = model_index(config, model_name)
    return metadata if index is None else {**metadata, "model-index": index}


def model_index(config: Config, model_name: str) -> Index | None:
    """Return the measures after the edit as the Hub's `model-index`.

    The dataset is what the artifact's `data` says: `name`, and where given `type` (its id on the
    Hub), `config`, `split` and `revision`. Without a name there is no valid entry, so none is made.
    """
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    # Only what was measured after the edit: the entry is about the model that results.
    data = _dataset(config["data"])
    if config["evaluation"] is None or "name" not in data:
        return None
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Image Classification",
            dataset_type=data.get("type", NO_HUB_DATASET),
            dataset_name=data["name"],
            dataset_config=data.get("config"),
            dataset_split=data.get("split"),
            dataset_revision=data.get("revision"),
            metric_type=_metric_type(name),
            metric_name=f"{' '.join(name.split())} after the edit",
            metric_value=value,
        )
        for name, value in sorted(config["evaluation"]["after"].items())
    ]
    index: Index = eval_results_to_model_index(model_name, results)
    return index if results else None


def _dataset(data: Mapping[str, object]) -> dict[str, str]:
    """Return what `data` says about the dataset in the Hub's terms."""
    fields = ("name", "type", "config", "split", "revision")
    said = {field: " ".join(str(data[field]).split()) for field in fields if data.get(field)}
    return {field: text for field, text in said.items() if text}


def _metric_type(name: str) -> str:
    """Return a measure's name as an identifier; `accuracy` is the Hub's own.

    >>> _metric_type("mean accuracy of the other classes")
    'mean_accuracy_of_the_other_classes'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "measure"
