"""The model card: written from an artifact's manifest, then people's to edit.

`README.md` is for people. Nothing is ever read from it, so it stays outside of the manifest's
list of digests: its authors may edit it, and the Hub's own metadata form does, without making
the artifact invalid. `card_state` tells whether it still is what this library writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from salve_plugin.errors import ArtifactError, WriteError
from salve_plugin.share.card_metadata import (
    CARD_FILE,
    front_matter,
    merged_metadata,
    read_metadata,
    with_metadata,
)
from salve_plugin.share.card_text import Config, card_body
from salve_plugin.share.existing import Existing

MAX_CARD_BYTES = 4 * 2**20

CardState = Literal["as written", "edited", "missing", "unknown"]


@dataclass(frozen=True)
class Card:
    """A card as this library writes it.

    Attributes:
        metadata: for the Hub.
        text: for people.
    """

    metadata: Mapping[str, Any]
    text: str

    def to_bytes(self) -> bytes:
        """Return a fresh `README.md`."""
        from huggingface_hub import CardData

        # The same bytes as by `with_metadata`, without its detour over a file.
        return f"---\n{CardData(**self.metadata).to_yaml()}\n---\n{self.text}".encode()

    def over(self, existing: bytes | None, previous: "Card | None" = None) -> bytes:
        """Return an existing `README.md` with its metadata brought up to date and its body kept.

        People's metadata stay too, see `merged_metadata`. A body that is exactly what this library
        wrote as the `previous` card is nobody's words and is written anew, since its tables would
        otherwise describe something else.

        Raises:
            InputError: if the file is not UTF-8 or its metadata are not readable YAML.
        """
        if existing is None:
            return self.to_bytes()
        metadata = read_metadata(existing)
        if previous is not None and existing == previous.to_bytes():
            return self.to_bytes()
        old = {} if previous is None else previous.metadata
        wanted = merged_metadata(metadata, self.metadata, old)
        if previous is not None and _body(existing) == previous.text.encode():
            return with_metadata(self.text.encode(), wanted)
        # Unchanged metadata are not written again: that would drop their comments and quotes.
        return existing if wanted == metadata else with_metadata(existing, wanted)


def card_at(existing: Existing) -> bytes | None:
    """Return the `README.md` that is to be brought up to date; None if there is none.

    Raises:
        WriteError: if its text could not be kept, since it is a link, no file, or too long.
    """
    try:
        return existing.read(CARD_FILE, MAX_CARD_BYTES)
    except ArtifactError as error:
        raise WriteError(
            f"the {CARD_FILE} that is there is a link, no plain file, or longer than "
            f"{MAX_CARD_BYTES} bytes, so that its text cannot be kept; nothing was written. Move "
            "it away, then repeat the call"
        ) from error


def card_of(config: Config) -> Card:
    """Return the card of an artifact, a function of its manifest alone."""
    return Card(front_matter(config), card_body(config))


def new_card(config: Config) -> bytes:
    """Return a fresh `README.md` of an artifact."""
    return card_of(config).to_bytes()


def updated_card(existing: bytes, config: Config, previous: Config | None = None) -> bytes:
    """Return an artifact's existing `README.md` brought up to date, see `Card.over`.

    Raises:
        InputError: if the file is not UTF-8 or its metadata are not readable YAML.
    """
    return card_of(config).over(existing, None if previous is None else card_of(previous))


def card_state(existing: bytes, config: Config) -> CardState:
    """Tell whether a `README.md` is to the byte what this library writes for the manifest."""
    return "as written" if existing == new_card(config) else "edited"


def _body(card: bytes) -> bytes | None:
    """Return what follows the metadata; None if they are not where this library writes them."""
    metadata, found, body = card.rpartition(b"\n---\n")
    return body if found and metadata.startswith(b"---\n") else None


__all__ = [
    "CARD_FILE", "MAX_CARD_BYTES", "Card", "CardState", "card_at", "card_of", "card_state",
    "new_card", "updated_card",
]  # fmt: skip
