"""From the files of an artifact to its checked contents.

Every file is read once into memory, hashed, and parsed from those very bytes. Nothing that is read
is imported, executed or used as a path.
"""

from pathlib import Path
from typing import Any

from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.canonical import Json, dump
from salve_plugin.share.card import CARD_FILE, MAX_CARD_BYTES, card_state
from salve_plugin.share.contents import Contents, manifest_of, rebuild
from salve_plugin.share.folder import Reader, folder_reader
from salve_plugin.share.manifest import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    identity,
    picture_name,
    read_files,
    read_manifest,
)
from salve_plugin.share.tensor_file import TENSOR_FILE, decode_tensors


def open_folder(folder: str | Path) -> Path:
    """Return the artifact's folder.

    Raises:
        ArtifactError: if there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArtifactError(
            f"there is no folder '{folder}'. This version reads artifacts from local folders "
            "only; download the repository first and pass the folder that holds "
            f"{CONFIG_FILE}"
        )
    return path


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


def inspect(folder: str | Path) -> Json:
    """Return what an artifact says about itself, after checking the digest of every file.

    Only JSON is read and hashes are computed; tensors are not opened. Beside the manifest's own
    fields (see `edit_config.schema.json`) there are

    - `bytes`: the size of the artifact's files,
    - `card`: "as written", "edited" (by people: its tables may differ from the manifest) or
      "missing".

    Raises:
        ArtifactError: as for reading.
    """
    path = open_folder(folder)
    read = folder_reader(path)
    manifest = read(CONFIG_FILE, MAX_CONFIG_BYTES)
    config: dict[str, Any] = read_manifest(manifest)
    files = read_files(read, config["files"])
    card = read_card(path)
    return {
        **config,
        "bytes": len(manifest) + sum(len(data) for data in files.values()),
        "card": card_state(card, config),
    }


def read_card(folder: Path) -> bytes | None:
    """Return the bytes of `README.md`, None without one.

    Raises:
        ArtifactError: if it is a link, not a plain file, or too long.
    """
    path = folder / CARD_FILE
    if not path.exists() and not path.is_symlink():
        return None
    return folder_reader(folder)(CARD_FILE, MAX_CARD_BYTES)
