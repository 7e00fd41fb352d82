"""`edit_config.json`: what an artifact is, sealed so that a single changed bit shows.

Two digests, for two questions. `digest` is the artifact's identity: the same for the same edit
and evidence, whatever wrote it. `manifest_sha256` seals the file: it is over all its bytes but the
one line that holds it. Every other file is listed with its own SHA-256, so no bit is uncovered.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from salve_plugin.errors import ArtifactError
from salve_plugin.files import sha256_file
from salve_plugin.share.canonical import (
    Json,
    content_digest,
    parse_json,
    readable_json,
    shortened,
)
from salve_plugin.share.folder import Reader, sha256_bytes
from salve_plugin.share.pictures import MAX_PICTURE_BYTES, PNG_START
from salve_plugin.share.schema import check_schema
from salve_plugin.share.tensor_file import MAX_TENSOR_FILE_BYTES, TENSOR_FILE

FORMAT_VERSION = "1.0"
"""Major: an older reader would get it wrong. Minor: it would only miss something."""
CONFIG_FILE = "edit_config.json"
MAX_CONFIG_BYTES = 16 * 2**20

FEATURES = frozenset({"scale", "pristine", "alpha_crit", "dictionary"})
"""What a reader must know to read an artifact that lists it in `requires`."""

# Where and how the artifact was written down; the same edit in other files is the same artifact.
_NOT_IDENTITY = {"digest", "files", "format_version", "manifest_sha256", "merged", "producer"}


def seal(
    config: Json,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    merged: Mapping[str, Json] | None = None,
) -> Json:
    """Return the manifest completed by version, files and digests, `manifest_sha256` excepted.

    Args:
        config: what the artifact is, see `salve_plugin.share.contents.manifest_of`.
        tensors: of `edit.safetensors`.
        files: the artifact's other files.
        merged: entries of the edited model's own files, where they lie beside the artifact.
    """
    return {
        **config,
        "format_version": FORMAT_VERSION,
        "digest": identity(config, tensors),
        "files": {name: entry_of(data) for name, data in files.items()},
        "merged": None if merged is None else dict(merged),
    }


def entry_of(data: bytes) -> Json:
    """Return a file's entry in the manifest."""
    return {"sha256": sha256_bytes(data), "size": len(data)}


def entry_of_file(path: Path) -> Json:
    """Return the entry of a local file, which is read in pieces."""
    return {"sha256": sha256_file(path), "size": path.stat().st_size}


def write_manifest(config: Json) -> bytes:
    """Return the bytes of `edit_config.json`: the manifest and the seal over the rest."""
    digest = sha256_bytes(readable_json(config))
    return readable_json({**config, "manifest_sha256": digest})


def identity(config: Json, tensors: Mapping[str, Tensor]) -> str:
    """Return the artifact's digest: of its tensors and of what the manifest says about them."""
    return content_digest(identity_fields(config), tensors)


def identity_fields(config: Json) -> Json:
    """Return those fields of a manifest that say what the artifact is."""
    return {name: value for name, value in config.items() if name not in _NOT_IDENTITY}


def read_manifest(data: bytes) -> Json:
    """Return the manifest in the bytes of `edit_config.json`, fully checked.

    Raises:
        ArtifactError: if the version's major number is newer, a required feature is unknown, a
            field is missing, unknown or ill-formed, or a bit differs from what was written.
    """
    config = parse_json(data, CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES)
    # First what a newer version would change, so that its user is not told "corrupt".
    check_version(config.get("format_version"))
    check_features(config.get("requires"))
    check_seal(data, config.get("manifest_sha256"))
    check_schema(config)
    check_evaluation(config["evaluation"])
    return config


def check_seal(data: bytes, said: object, *, file: str = CONFIG_FILE, depth: int = 1) -> None:
    """Raise unless a file hashes to its `manifest_sha256` when the line of that field is left out.

    Args:
        data: the file, as `readable_json` writes it.
        said: the field's value.
        file: its name, for messages.
        depth: of the object that has the field; 1 is the outermost one.

    Raises:
        ArtifactError: if a bit differs from what was written.
    """
    # A raw newline cannot be inside a JSON string, so this is a line of an object at that depth.
    line = f'\n{"  " * depth}"manifest_sha256": "{said}",'.encode(errors="replace")
    before, found, after = data.partition(line)
    digest = sha256_bytes(before + after)
    if not found or digest != said:
        raise ArtifactError(
            f"{file} was changed: it hashes to {digest}, it says {str(said)[:64]!r}. Get the "
            "artifact again"
        )


def check_evaluation(evaluation: Any) -> None:
    """Raise unless every measure is given before and after; the schema cannot say that."""
    if evaluation is not None:
        check_names(evaluation["after"], evaluation["before"], "measures after the edit")


def check_version(version: object, *, file: str = CONFIG_FILE) -> None:
    """Raise unless the format's major version is ours."""
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", version):
        raise ArtifactError(
            f"{file} has the format_version {str(version)[:40]!r}, expected for example "
            f"'{FORMAT_VERSION}'; it is corrupt or no artifact of salve_plugin"
        )
    ours, theirs = (int(text.split(".")[0]) for text in (FORMAT_VERSION, version))
    if theirs > ours:
        raise ArtifactError(
            f"the artifact has format {version}, this salve_plugin reads up to {ours}.x; upgrade "
            "salve_plugin (`pip install -U salve-plugin`)"
        )
    if theirs < ours:
        raise ArtifactError(f"the artifact has format {version}, which never was released")


def check_features(features: object, ours: Collection[str] = FEATURES) -> None:
    """Raise if reading needs a feature that this version does not have."""
    listed = features if isinstance(features, list) else []
    unknown = [name for name in listed if not (isinstance(name, str) and name in ours)]
    if unknown:
        raise ArtifactError(
            f"the artifact requires {shortened(unknown[:5], 200)}, this salve_plugin knows "
            f"{sorted(ours)}; upgrade salve_plugin (`pip install -U salve-plugin`)"
        )


def read_files(read: Reader, files: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of every file that the manifest lists, each read once and then checked.

    Raises:
        ArtifactError: if a file is missing, a link, longer than it should be or than the limits
            allow, or not what was written.
    """
    contents = {}
    for name, entry in sorted(files.items()):
        limit = MAX_TENSOR_FILE_BYTES if name == TENSOR_FILE else MAX_PICTURE_BYTES
        contents[name] = read_listed(read, name, entry, limit)
    return contents


def read_listed(
    read: Reader, name: str, entry: Json, limit: int, *, manifest: str = CONFIG_FILE
) -> bytes:
    """Return the bytes of one file that the manifest lists, checked.

    No more than was written is read into memory, whatever the file has become.

    Raises:
        ArtifactError: as `read_files`.
    """
    size = entry["size"]
    assert isinstance(size, int)  # by the schema
    if size > limit:
        raise ArtifactError(
            f"{manifest} says that {name} has {size} bytes, more than the {limit} that are read; "
            "this is no artifact of salve_plugin, or a newer one"
        )
    data = read(name, size)
    check_file(name, data, entry, manifest=manifest)
    return data


def check_file(name: str, data: bytes, entry: Json, *, manifest: str = CONFIG_FILE) -> None:
    """Raise unless the bytes have the size and digest that the manifest states."""
    if len(data) != entry["size"]:
        raise ArtifactError(
            f"{name} has {len(data)} bytes, {manifest} says {entry['size']}; it is truncated "
            "or another file. Get the artifact again"
        )
    found = sha256_bytes(data)
    if found != entry["sha256"]:
        raise ArtifactError(
            f"{name} was changed: its SHA-256 is {found}, {manifest} says {entry['sha256']}. "
            "Get the artifact again"
        )
    if name.endswith(".png") and not data.startswith(PNG_START):
        raise ArtifactError(f"{name} is not a PNG picture; get the artifact again")


def check_names(found: Collection[str], expected: Collection[str], what: str) -> None:
    """Raise unless two sets of names are equal; the message lists both differences."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise ArtifactError(
            f"{what}: missing {shortened(missing[:5], 300)}, unexpected "
            f"{shortened(extra[:5], 300)}; the artifact is corrupt or was put "
            "together by hand. Get it again"
        )
