"""From an artifact's contents to the files that are to be written, given what is there already."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share import reading
from salve_plugin.share.canonical import Json
from salve_plugin.share.card import CARD_FILE, card_at, new_card, updated_card
from salve_plugin.share.contents import Contents, manifest_of, tensors_of
from salve_plugin.share.existing import Change, Existing
from salve_plugin.share.manifest import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    entry_of_file,
    identity,
    read_manifest,
    seal,
    write_manifest,
)
from salve_plugin.share.pictures import picture_file
from salve_plugin.share.tensor_file import TENSOR_FILE, encode_tensors


def planned(
    contents: Contents, existing: Existing, model: Mapping[str, Path] | None = None
) -> Change:
    """Return what to write so that the place holds exactly this artifact.

    An edited model that lies beside an artifact with the same edit stays and stays listed; beside
    another edit it would be a lie, and is removed unless somebody changed it. The manifest is the
    last of the files: until it is in place, the digests in an older one expose a mixture.

    Args:
        contents: the artifact.
        existing: what is there.
        model: local files of the edited model, to lie beside it, by their names there.

    Raises:
        InputError: if a part has no exact JSON form, the artifact could not be read back, or the
            model would replace one that is not the artifact's.
        WriteError: if the text of the card there could not be kept.
    """
    previous = previous_manifest(existing)
    if model is None:
        merged = _kept_model(contents, existing, previous)
    else:
        merged = {name: entry_of_file(path) for name, path in model.items()}
        _check_room(existing, merged, previous)
    config, files = _packed(contents, merged)
    own = {} if previous is None else {**previous["files"], **(previous["merged"] or {})}
    kept = {*files, *(config["merged"] or {})}
    obsolete = [
        name for name, entry in own.items() if name not in kept and existing.holds(name, entry)
    ]
    card = _card(existing, config, previous)
    return Change({CARD_FILE: card, **(model or {}), **files}, obsolete)


def previous_manifest(existing: Existing) -> dict[str, Any] | None:
    """Return the manifest of an artifact that is there already, if it is a valid one."""
    try:
        data = existing.read(CONFIG_FILE, MAX_CONFIG_BYTES)
        return None if data is None else read_manifest(data)
    except ArtifactError:
        return None


def _kept_model(
    contents: Contents, existing: Existing, previous: Mapping[str, Any] | None
) -> Mapping[str, Json] | None:
    """Return the entries of an edited model that is there already, if it has this very edit."""
    merged: Mapping[str, Json] | None = None if previous is None else previous["merged"]
    if previous is None or merged is None:
        return None
    same = identity(manifest_of(contents), tensors_of(contents)) == previous["digest"]
    whole = all(existing.holds(name, entry) for name, entry in merged.items())
    return merged if same and whole else None


def _check_room(
    existing: Existing, merged: Mapping[str, Json], previous: Mapping[str, Any] | None
) -> None:
    """Raise if the edited model would replace somebody's own: training may have gone into it."""
    listed = (previous or {}).get("merged") or {}
    for name, entry in merged.items():
        ours = [known for known in (listed.get(name), entry) if known is not None]
        if existing.has(name) and not any(existing.holds(name, known) for known in ours):
            raise InputError(
                f"there is another {name} already, which is not that of the artifact there; "
                "nothing was written. Choose another place, or move that model away"
            )


def _packed(
    contents: Contents, merged: Mapping[str, Json] | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest's fields and the bytes of every file but the card."""
    tensors = tensors_of(contents)
    pictures = sorted((contents.pictures or {}).items())
    files = {
        TENSOR_FILE: encode_tensors(tensors),
        **{picture_file(name): data for name, data in pictures},
    }
    config = seal(manifest_of(contents), tensors, files, merged)
    files[CONFIG_FILE] = write_manifest(config)
    # Whatever is written can be read: the reader's own checks are the writer's.
    try:
        reading.read_artifact(lambda name, _: files[name])
    except ArtifactError as error:
        raise InputError(f"the artifact could not be read back: {error}") from error
    return config, files


def _card(existing: Existing, config: Json, previous: Json | None) -> bytes:
    card = card_at(existing)
    return new_card(config) if card is None else updated_card(card, config, previous)
