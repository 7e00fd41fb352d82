"""The card of a dictionary: what its `cfg.json` says, in words for people.

As with an edit's card, nothing is read from it, and its text belongs to whoever edits it.
"""

import re
from collections.abc import Mapping
from typing import Any

from salve_plugin.discover.saelens_layout import CONFIG_FILE, OWN
from salve_plugin.share.card_metadata import REPO_ID, read_metadata, with_metadata
from salve_plugin.share.card_text import plain, table

Config = Mapping[str, Any]
"""The fields of a `cfg.json` that passed its schema."""

MEASURES = {
    "held_out_r2": "explained variance of held-out rows (R²)",
    "l0": "active latents of a held-out row (L0)",
    "dead_share": "share of latents that no training row activates",
}
"""What of the meta is shown, if it is there."""


def new_card(config: Config) -> bytes:
    """Return a fresh `README.md`."""
    return with_metadata(card_body(config).encode(), front_matter(config))


def updated_card(existing: bytes, config: Config, previous: Config | None = None) -> bytes:
    """Return an existing `README.md` with its metadata brought up to date and its text kept.

    A text, or a field of the metadata, that is exactly what this library wrote for the `previous`
    dictionary is nobody's words and follows the dictionary. Tags are united.

    Raises:
        InputError: if the file is not UTF-8 or its metadata are not readable YAML.
    """
    metadata = read_metadata(existing)
    old = {} if previous is None else front_matter(previous)
    kept = {name: value for name, value in metadata.items() if old.get(name) != value}
    wanted = {**kept, **front_matter(config)}
    if isinstance(kept.get("tags"), list):
        outdated = set(old.get("tags", ())) - set(wanted["tags"])
        theirs = [tag for tag in kept["tags"] if tag not in outdated]
        wanted["tags"] = [*theirs, *(tag for tag in wanted["tags"] if tag not in theirs)]
    _, _, text = existing.rpartition(b"\n---\n")
    if previous is not None and text == card_body(previous).encode():
        existing = with_metadata(card_body(config).encode(), metadata)
    # Unchanged metadata are not written again: that would drop their comments and quotes.
    return existing if wanted == metadata else with_metadata(existing, wanted)


def front_matter(config: Config) -> dict[str, Any]:
    """Return the card's metadata: the Hub's vocabulary, only what is known.

    The license is left to the author: a dictionary holds nothing of the model's weights.
    """
    tags = ["salve_plugin", "sparse-autoencoder", "interpretability"]
    metadata: dict[str, Any] = {
        "library_name": "salve_plugin",
        "tags": [*tags, "saelens"] if config["architecture"] in OWN else tags,
    }
    model = _model(config)
    base = model.get("hf_hub_id")
    if isinstance(base, str) and re.fullmatch(REPO_ID, base):
        metadata |= {"base_model": base, "base_model_relation": "adapter"}
    return metadata


def card_body(config: Config) -> str:
    """Return the card's text below its metadata, a function of the fields alone."""
    own = config["metadata"]["salve_plugin"]
    model = plain(_model(config).get("architecture") or "an image classifier")
    parts = [
        f"# Dictionary of {config['d_sae']} features of {model}",
        "This folder holds a dictionary that was learned from activations of a trained image "
        "classifier with [salve_plugin](https://pypi.org/project/salve-plugin/). It does not hold "
        "the model.",
        table(("what", "value"), _facts(config)),
        f"## Use\n\n```python\n{_how_to_use(config)}\n```",
        "## Integrity\n\n"
        f"Dictionary `{own['digest']}` (SHA-256 over its tensors, learner, options and site). "
        f"Both files are checked against `{CONFIG_FILE}` before they are used.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(config: Config) -> list[tuple[str, str]]:
    own = config["metadata"]["salve_plugin"]
    numbers = {words: own["meta"].get(name) for name, words in MEASURES.items()}
    return [
        ("learner", plain(own["learner"])),
        ("site", plain(own["site"]["name"])),
        ("features of the site", str(config["d_in"])),
        ("latents", str(config["d_sae"])),
        *(
            (words, f"{value:.4g}")
            for words, value in numbers.items()
            if isinstance(value, int | float)
        ),
    ]


def _how_to_use(config: Config) -> str:
    lines = [
        "import salve_plugin as salve",
        "",
        'dictionary = salve.Dictionary.from_pretrained("path/to/this/folder")',
        "codes = dictionary.encode(rows)  # of activations at the site",
    ]
    if config["architecture"] in OWN:
        lines += [
            "",
            "from sae_lens import SAE  # reads the same files",
            "",
            'sae = SAE.load_from_disk("path/to/this/folder")',
        ]
    return "\n".join(lines)


def _model(config: Config) -> Mapping[str, Any]:
    model = config["metadata"]["salve_plugin"]["meta"].get("model")
    return model if isinstance(model, dict) else {}
