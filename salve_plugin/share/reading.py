"""From the files of an artifact to its checked contents.

Every file is read once into memory, hashed, and parsed from those very bytes. Nothing that is read
is imported, executed or used as a path.
"""

from collections.abc import Mapping
from typing import Any, Unpack

from salve_plugin.errors import ArtifactError, HubError, InputError, MissingFileError
from salve_plugin.share.canonical import Json, dump
from salve_plugin.share.card import CARD_FILE, MAX_CARD_BYTES, CardState, card_state
from salve_plugin.share.contents import Contents, manifest_of, rebuild
from salve_plugin.share.folder import Reader
from salve_plugin.share.manifest import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    identity,
    read_files,
    read_manifest,
)
from salve_plugin.share.pictures import picture_name
from salve_plugin.share.sources import PathLike, Source, Where, open_source
from salve_plugin.share.tensor_file import TENSOR_FILE, decode_tensors


def read_artifact(read: Reader) -> tuple[Json, dict[str, Any]]:
    """Return the manifest and the arguments of `Contents`, every promise of the format checked.

    Args:
        read: returns the bytes of a file by name, see `folder_reader`.

    Raises:
        ArtifactError: says what was found, what was expected and what to do.
    """
    config: dict[str, Any] = read_manifest(read(CONFIG_FILE, MAX_CONFIG_BYTES))
    files = read_files(read, config["files"])
    tensors = decode_tensors(files.pop(TENSOR_FILE))
    found = identity(config, tensors)
    if found != config["digest"]:
        raise ArtifactError(
            f"the artifact is {found}, its manifest says {config['digest']}; get it again"
        )
    parts = rebuild(config, tensors, {picture_name(name): data for name, data in files.items()})
    _check_consistency(config, parts)
    return config, parts


def check_model(place: Source, merged: Mapping[str, Any] | None) -> None:
    """Check the edited model that an artifact says lies beside it, without loading it.

    A local file is hashed in pieces. On the Hub its own digests are compared: nothing large is
    downloaded, and a copy of the model elsewhere is not looked at.

    Args:
        place: where the artifact was read from.
        merged: the model's files as the artifact lists them, by path in the place.

    Raises:
        ArtifactError: if a file is missing, or is not what the artifact lists.
        HubError: if the Hub cannot be asked.
    """
    for name, entry in sorted((merged or {}).items()):
        if not place.existing.has(name):
            raise MissingFileError(
                f"{place.name} has no {name}, but {CONFIG_FILE} lists it: the edited model is "
                "incomplete. Get it again"
            )
        if not place.existing.holds(name, entry):
            raise ArtifactError(
                f"{name} of {place.name} was changed: {CONFIG_FILE} lists {entry['size']} bytes "
                f"with the SHA-256 {entry['sha256']}. Get the edited model again"
            )


def _check_consistency(config: Json, parts: dict[str, Any]) -> None:
    """Raise unless the manifest says exactly what the contents are."""
    try:
        derived = manifest_of(Contents(**parts))
    except InputError as error:
        raise ArtifactError(f"the artifact contradicts itself: {error}") from error
    del derived["producer"]  # whoever wrote it
    said = {name: config[name] for name in derived}
    if dump(derived) != dump(said):
        wrong = [name for name in said if dump(derived[name]) != dump(said[name])]
        raise ArtifactError(
            f"{CONFIG_FILE} contradicts {TENSOR_FILE}: {wrong} do not follow from the tensors "
            "and the other fields; get the artifact again"
        )


def inspect(source: PathLike, **where: Unpack[Where]) -> Json:
    """Return what an artifact says about itself, after checking the digest of every file.

    Only JSON is read and hashes are computed; tensors are not opened. Beside the manifest's own
    fields (see `edit_config.schema.json`) there are

    - `bytes`: the size of the artifact's files,
    - `card`: "as written", "edited" (by people: its tables may differ from the manifest),
      "missing", or "unknown" (not in the cache, and the network is not to be used),
    - `origin`: repository, commit and subfolder if it is on the Hub, else None.

    Args:
        source: a local folder, or a Hub repository as "user/name".
        **where: see `salve_plugin.share.sources.Where`.

    Raises:
        SalveError: as for reading.
    """
    place = open_source(source, CONFIG_FILE, **where)
    said = place.use(described)
    origin = place.origin
    return {**said, "origin": None if origin is None else origin.reference.to_json()}


def described(read: Reader) -> Json:
    """Return what an artifact says about itself, see `inspect`, without where it is from."""
    manifest = read(CONFIG_FILE, MAX_CONFIG_BYTES)
    config: dict[str, Any] = read_manifest(manifest)
    files = read_files(read, config["files"])
    return {
        **config,
        "bytes": len(manifest) + sum(len(data) for data in files.values()),
        "card": state_of_card(read, config),
    }


def state_of_card(read: Reader, config: Json) -> CardState:
    """Compare the card with what the manifest calls for; nothing is read from it."""
    try:
        return card_state(read(CARD_FILE, MAX_CARD_BYTES), config)
    except MissingFileError:
        return "missing"
    except HubError as error:
        if error.reason != "not_cached":
            raise
        return "unknown"
