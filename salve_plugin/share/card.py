"""The model card: written from an artifact's manifest, then people's to edit.

`README.md` is for people. Nothing is ever read from it, so it stays outside of the manifest's
list of digests: its authors may edit it, and the Hub's own metadata form does, without making
the artifact invalid. `card_state` tells whether the text still is what this library writes.
"""

from typing import Literal

from salve_plugin.share.card_metadata import CARD_FILE, front_matter, read_metadata, with_metadata
from salve_plugin.share.card_text import Config, card_body

MAX_CARD_BYTES = 4 * 2**20

CardState = Literal["as written", "edited", "missing", "unknown"]


def new_card(config: Config) -> bytes:
    """Return a fresh `README.md`."""
    return with_metadata(card_body(config).encode(), front_matter(config))


def updated_card(existing: bytes, config: Config, previous: Config | None = None) -> bytes:
    """Return an existing `README.md` with its metadata brought up to date and its body kept.

    People's metadata stay too: tags are united, a license is never replaced. A body that is
    exactly what this library wrote for the `previous` manifest is nobody's words and is written
    anew, since its tables would otherwise describe another edit.

    Raises:
        InputError: if the file is not UTF-8 or its metadata are not readable YAML.
    """
    if previous is not None and card_state(existing, previous) == "as written":
        body = card_body(config).encode()
        existing = with_metadata(body, read_metadata(existing))
    metadata = read_metadata(existing)
    wanted = {**metadata, **front_matter(config)}
    tags = metadata.get("tags")
    if isinstance(tags, list):
        wanted["tags"] = [*tags, *(tag for tag in _tags(config) if tag not in tags)]
    if metadata.get("license"):
        wanted["license"] = metadata["license"]
    # Unchanged metadata are not written again: that would drop their comments and quotes.
    return existing if wanted == metadata else with_metadata(existing, wanted)


def card_state(existing: bytes, config: Config) -> CardState:
    """Tell whether a `README.md` holds exactly the text that the manifest calls for."""
    expected = card_body(config).encode()
    _, _, body = existing.rpartition(b"\n---\n")
    return "as written" if existing.startswith(b"---\n") and body == expected else "edited"


def _tags(config: Config) -> list[str]:
    tags = front_matter(config)["tags"]
    assert isinstance(tags, list)
    return tags


__all__ = ["CARD_FILE", "MAX_CARD_BYTES", "CardState", "card_state", "new_card", "updated_card"]
