"""The card of a dictionary: what its `cfg.json` says, in words for people.

As with an edit's card, nothing is read from it, and its text belongs to whoever edits it.
"""

from collections.abc import Mapping
from typing import Any

from salve_plugin.discover.saelens_layout import CONFIG_FILE, OWN
from salve_plugin.store.card import Card, base_fields, plain, sections, table

Config = Mapping[str, Any]

MEASURES = {
    "held_out_r2": "explained variance of held-out rows (R²)",
    "l0": "active latents of a held-out row (L0)",
    "dead_share": "share of latents that no training row activates",
}
"""What of the meta is shown, if it is there."""


def dictionary_card(config: Config) -> Card:
    """Return the card of a dictionary, a function of its fields alone."""
    return Card(_metadata(config), _text(config))


def _metadata(config: Config) -> dict[str, Any]:
    # The license is left to the author: a dictionary holds nothing of the model's weights.
    tags = ["salve_plugin", "sparse-autoencoder", "interpretability"]
    return {
        "library_name": "salve_plugin",
        "tags": [*tags, "saelens"] if config["architecture"] in OWN else tags,
        **base_fields(_model(config)),
    }


def _text(config: Config) -> str:
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
    return sections(parts)


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
            # The meta is anybody's: what is no number is left out, not printed.
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
