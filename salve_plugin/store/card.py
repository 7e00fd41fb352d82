"""The card, `README.md`: written from a manifest, then people's to edit.

Nothing is ever read from it, so it stays outside of the manifest's list of digests: its authors may
edit it, and the Hub's own metadata form does, without making anything invalid. Only its metadata,
the block of YAML that the Hub reads, are brought up to date.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from typing import Any, Literal

from salve_plugin.errors import ArtifactError, HubError, InputError, MissingFileError, WriteError
from salve_plugin.store.card_yaml import parsed, rewritten
from salve_plugin.store.files import FileReader
from salve_plugin.store.model_index import merged_index
from salve_plugin.store.place import Existing
from salve_plugin.store.reference import is_repo_id

CARD_FILE = "README.md"
MAX_CARD_BYTES = 4 * 2**20

CardState = Literal["as written", "edited", "missing", "unknown"]
Relation = Literal["adapter", "finetune"]
"""How the Hub calls what needs the base model, and what holds it in changed form."""
_RESULTS = "model-index"
_LICENSE = ("license", "license_name", "license_link")


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
        # People edited the metadata only, as the Hub's form does: the text is still nobody's.
        if previous is not None and _body(existing) == previous.text.encode():
            return with_metadata(self.text.encode(), wanted)
        # Unchanged metadata are not written again: that would drop their comments and quotes.
        return existing if wanted == metadata else with_metadata(existing, wanted)

    def state(self, existing: bytes) -> CardState:
        """Tell whether a `README.md` is to the byte what this library writes."""
        return "as written" if existing == self.to_bytes() else "edited"


def card_at(existing: Existing) -> bytes | None:
    """Return the `README.md` that is to be brought up to date; None if there is none.

    Raises:
        WriteError: if its text could not be kept, since it is a link, no file, or too long.
    """
    try:
        return existing.read(CARD_FILE, MAX_CARD_BYTES)
    except MissingFileError:
        return None
    except ArtifactError as error:
        raise WriteError(
            f"the {CARD_FILE} that is there is a link, no plain file, not to be read, or longer "
            f"than {MAX_CARD_BYTES} bytes, so that its text cannot be kept; nothing was written. "
            "Move it away, then repeat the call"
        ) from error


def state_of_card(read: FileReader, card: Card) -> CardState:
    """Compare the card at a place with what its manifest calls for."""
    try:
        return card.state(read(CARD_FILE, MAX_CARD_BYTES))
    except MissingFileError:
        return "missing"
    except ArtifactError:  # a link, too long: no part of the thing, which is none the worse
        return "unknown"
    except HubError as error:
        if error.reason != "not_cached":
            raise
        return "unknown"


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
    # A diff of the card shows what has changed, not a new order.
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
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    # As the Hub client's `metadata_load`, which takes files only.
    try:
        block = REGEX_YAML_BLOCK.search(TextIOWrapper(BytesIO(card), "utf-8-sig").read())
        metadata = parsed(f"{block[2]}\n") if block else {}
    except Exception as error:  # YAML's many kinds, and a block that is no mapping
        raise InputError(
            f"{CARD_FILE}: its metadata (the block between the '---' lines) cannot be read: "
            f"{error}; repair the file or move it away, then save again"
        ) from error
    return metadata


def with_metadata(card: bytes, metadata: dict[str, Any]) -> bytes:
    """Return a `README.md` with other metadata and the same text, to the byte."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = card.decode("utf-8-sig")
    line_break = re.search("\r\n|\r|\n", text)
    end = line_break[0] if line_break else "\n"
    there = REGEX_YAML_BLOCK.search(text)
    block = rewritten(there[2] + end if there else "", metadata, end)
    return f"---{end}{block}---{end}{REGEX_YAML_BLOCK.sub('', text, count=1)}".encode()


def _body(card: bytes) -> bytes | None:
    """Return what follows the metadata; None if they are not where this library writes them."""
    metadata, found, body = card.rpartition(b"\n---\n")
    return body if found and metadata.startswith(b"---\n") else None


def base_fields(known: Mapping[str, Any], relation: Relation = "adapter") -> dict[str, str]:
    """Return the base model as metadata of a card, from its description; nothing if not known."""
    # A relation without the model that it relates to would be an invalid card.
    base = known.get("hf_hub_id")
    if isinstance(base, str) and is_repo_id(base):
        return {"base_model": base, "base_model_relation": relation}
    return {}


def sections(parts: Sequence[str]) -> str:
    """Return the text of a card from its parts; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plain(value: object) -> str:
    """Return text that cannot break out of a Markdown line, a table cell or a code span."""
    text = " ".join(str(value).split())
    replaced = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "[": "\\[", "`": "'"}
    return "".join(replaced.get(letter, letter) for letter in text)
