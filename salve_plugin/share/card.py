"""The model card: written from an artifact's manifest, then people's to edit.

`README.md` is for people. Nothing is ever read from it, so it stays outside of the manifest's
list of digests: its authors may edit it, and the Hub's own metadata form does, without making
the artifact invalid. `card_state` tells whether it still is what this library writes.
"""

from typing import Literal

from salve_plugin.share.card_metadata import (
    CARD_FILE,
    front_matter,
    merged_metadata,
    read_metadata,
    with_metadata,
)
from salve_plugin.share.card_text import Config, card_body

MAX_CARD_BYTES = 4 * 2**20

CardState = Literal["as written", "edited", "missing", "unknown"]


def new_card(config: Config) -> bytes:
    """Return a fresh `README.md`, a function of the manifest alone."""
    from huggingface_hub import CardData

    # The same bytes as by `with_metadata`, without its detour over a file.
    return f"---\n{CardData(**front_matter(config)).to_yaml()}\n---\n{card_body(config)}".encode()


def updated_card(existing: bytes, config: Config, previous: Config | None = None) -> bytes:
    """Return an existing `README.md` with its metadata brought up to date and its body kept.

    People's metadata stay too, see `merged_metadata`. A body that is exactly what this library
    wrote for the `previous` manifest is nobody's words and is written anew, since its tables would
    otherwise describe another edit.

    Raises:
        InputError: if the file is not UTF-8 or its metadata are not readable YAML.
    """
    metadata = read_metadata(existing)
    if previous is not None and card_state(existing, previous) == "as written":
        return new_card(config)
    wanted = merged_metadata(metadata, config, previous)
    if previous is not None and _body(existing) == card_body(previous).encode():
        return with_metadata(card_body(config).encode(), wanted)
    # Unchanged metadata are not written again: that would drop their comments and quotes.
    return existing if wanted == metadata else with_metadata(existing, wanted)


def card_state(existing: bytes, config: Config) -> CardState:
    """Tell whether a `README.md` is to the byte what this library writes for the manifest."""
    return "as written" if existing == new_card(config) else "edited"


def _body(card: bytes) -> bytes | None:
    """Return what follows the metadata; None if they are not where this library writes them."""
    metadata, found, body = card.rpartition(b"\n---\n")
    return body if found and metadata.startswith(b"---\n") else None


__all__ = ["CARD_FILE", "MAX_CARD_BYTES", "CardState", "card_state", "new_card", "updated_card"]
