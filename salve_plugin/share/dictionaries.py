"""Dictionaries in folders and on the Hub; `Dictionary` has these functions as methods."""

from functools import partial
from pathlib import Path
from typing import Any, Unpack

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.saelens_layout import CONFIG_FILE
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.card import CARD_FILE, card_at
from salve_plugin.share.contents import Contents
from salve_plugin.share.dictionary_card import dictionary_card
from salve_plugin.share.dictionary_file import (
    MAX_CONFIG_BYTES,
    packed,
    read_config,
    read_dictionary,
)
from salve_plugin.share.existing import Change, Existing, ExistingFolder
from salve_plugin.share.folder import replace_files
from salve_plugin.share.hub.push import Pushed, Target, push
from salve_plugin.share.sources import PathLike, Source, Where, open_repository, open_source


def save(dictionary: Dictionary, folder: PathLike) -> Path:
    """Write a dictionary into a folder; see `Dictionary.save_pretrained`."""
    path = Path(folder)
    replace_files(path, planned(dictionary, ExistingFolder(path)).files)
    return path


def load(source: PathLike, **where: Unpack[Where]) -> Dictionary:
    """Read a dictionary; see `Dictionary.from_pretrained`."""
    return _read(open_source(source, CONFIG_FILE, **where))


def upload(dictionary: Dictionary, target: Target) -> Pushed:
    """Push a dictionary in one commit; see `Dictionary.push_to_hub`."""
    pushed = push(
        target, partial(planned, dictionary), f"Add dictionary {dictionary.digest()[:12]}"
    )
    if pushed.pull_request is None:
        dictionary.origin = pushed.reference
    return pushed


def dictionary_of(contents: Contents, **where: Unpack[Where]) -> Dictionary:
    """Return the dictionary that an artifact refers to; see `EditArtifact.load_dictionary`."""
    if contents.dictionary is not None:
        return contents.dictionary
    digest, at = contents.edit.dictionary_digest, contents.dictionary_at
    if digest is None:
        raise InputError("the edit does not come from a dictionary")
    if at is None:
        raise InputError(
            f"the artifact does not say where its dictionary {digest} is; get it from the "
            "artifact's author and read it with Dictionary.from_pretrained. Authors: push the "
            "dictionary before the artifact, or embed it with embed_dictionary=True"
        )
    # Not `open_source`: what an artifact says is never a path.
    where = {**where, "revision": at.commit, "subfolder": at.subfolder}
    dictionary = _read(open_repository(at.repo_id, CONFIG_FILE, **where))
    if dictionary.digest() != digest:
        raise ArtifactError(
            f"the dictionary at {at} is {dictionary.digest()}, the artifact's is {digest}: the "
            "artifact refers to the wrong place; ask its author"
        )
    return dictionary


def planned(dictionary: Dictionary, existing: Existing) -> Change:
    """Return what to write so that the place holds exactly this dictionary.

    `cfg.json` is the last of the files: until it is in place, the digests in an older one expose a
    mixture.

    Raises:
        InputError: if `meta` has no exact JSON form, or an existing card has unreadable metadata.
        WriteError: if the text of the card there could not be kept.
    """
    config, files = packed(dictionary)
    previous = _previous(existing)
    card = dictionary_card(config).over(
        card_at(existing),
        None if previous is None else dictionary_card(previous),
    )
    return Change({CARD_FILE: card, **files})


def _previous(existing: Existing) -> dict[str, Any] | None:
    """Return the fields of a dictionary that is there already, if they are valid."""
    try:
        data = existing.read(CONFIG_FILE, MAX_CONFIG_BYTES)
        return None if data is None else read_config(data)
    except ArtifactError:
        return None


def _read(place: Source) -> Dictionary:
    dictionary = place.use(read_dictionary)
    if place.origin is not None:
        dictionary.origin = place.origin.reference
    return dictionary
