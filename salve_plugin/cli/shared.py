"""Whatever can be shared: an edit, a bundle of edits or a dictionary, whichever is there."""

from typing import Unpack

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import MissingFileError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.sources import PathLike, Where

Shared = EditArtifact | EditBundle | Dictionary

KINDS: dict[str, type[EditArtifact] | type[EditBundle] | type[Dictionary]] = {
    "edit": EditArtifact,
    "bundle": EditBundle,
    "dictionary": Dictionary,
}


def read(source: PathLike, **where: Unpack[Where]) -> tuple[str, Shared]:
    """Return what lies at a place, verified, and what kind of thing it is.

    Raises:
        MissingFileError: if nothing that can be shared lies there.
        SalveError: as for reading it.
    """
    first: MissingFileError | None = None
    for kind, what in KINDS.items():
        try:
            return kind, what.from_pretrained(source, **where)
        except MissingFileError as error:
            first = first or error
    assert first is not None
    raise first


def digest_of(shared: Shared) -> str:
    """Return the identity of something shared."""
    return shared.digest() if isinstance(shared, Dictionary) else shared.digest
