"""A bundle as files: `edit_bundle.json`, a card, and one artifact a member in its own subfolder.

The manifest is sealed as an artifact's is. It lists the manifest of every member with its SHA-256,
and those list the members' other files: no bit but of the cards is uncovered.
"""

from collections.abc import Mapping
from typing import Any

from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle_contents import COMPOSES_BY, BundleContents, bundle_fields
from salve_plugin.share.canonical import Json, dump, parse_json
from salve_plugin.share.card import CARD_FILE, card_at, card_state, new_card, updated_card
from salve_plugin.share.composition import Composition
from salve_plugin.share.existing import Change, Content, Existing, ExistingPart
from salve_plugin.share.folder import Reader, remembering
from salve_plugin.share.manifest import (
    CONFIG_FILE,
    FORMAT_VERSION,
    MAX_CONFIG_BYTES,
    check_evaluation,
    check_features,
    check_file,
    check_names,
    check_seal,
    check_version,
    entry_of,
    identity,
    read_manifest,
    write_manifest,
)
from salve_plugin.share.reading import described, read_artifact, state_of_card
from salve_plugin.share.schema import check_schema
from salve_plugin.share.writing import planned, previous_manifest

BUNDLE_FILE = "edit_bundle.json"
SCHEMA_NAME = "edit_bundle.schema.json"


def member_file(name: str) -> str:
    """Return the path of a member's manifest in the bundle."""
    return f"{name}/{CONFIG_FILE}"


def read_bundle_manifest(data: bytes) -> dict[str, Any]:
    """Return the manifest in the bytes of `edit_bundle.json`, checked by itself.

    Raises:
        ArtifactError: as `salve_plugin.share.manifest.read_manifest`, or if it is not the manifest
            that its `digest` names.
    """
    config: dict[str, Any] = parse_json(data, BUNDLE_FILE, max_bytes=MAX_CONFIG_BYTES)
    check_version(config.get("format_version"), file=BUNDLE_FILE)
    check_features(config.get("requires"), {COMPOSES_BY})
    check_seal(data, config.get("manifest_sha256"), file=BUNDLE_FILE)
    check_schema(config, SCHEMA_NAME)
    for evaluation in (config, *config["members"].values()):
        check_evaluation(evaluation["evaluation"])
    check_names(config["files"], map_names(config["members"]), "manifests of members")
    found = identity(config, {})
    if found != config["digest"]:
        raise ArtifactError(
            f"the bundle is {found}, its manifest says {config['digest']}; get it again"
        )
    return config


def map_names(members: Mapping[str, object]) -> list[str]:
    """Return the paths of the members' manifests."""
    return [member_file(name) for name in members]


def read_bundle(read: Reader) -> tuple[Json, dict[str, Any]]:
    """Return the manifest and the arguments of `BundleContents`, every promise of the format kept.

    Args:
        read: returns the bytes of a file by name, see `salve_plugin.share.folder.folder_reader`.

    Raises:
        ArtifactError: says what was found, what was expected and what to do.
    """
    config = read_bundle_manifest(read(BUNDLE_FILE, MAX_CONFIG_BYTES))
    members = {}
    for name in config["members"]:
        _, parts = read_artifact(member_reader(read, name, config))
        members[name] = EditArtifact(**parts)
        _check_member(name, members[name].digest, config)
    try:
        parts = {
            "members": members,
            "composition": Composition.from_json(config["composition"]),
            "evaluation": config["evaluation"],
            "data": config["data"],
        }
        derived = bundle_fields(BundleContents(**parts))
    except InputError as error:
        raise ArtifactError(f"the bundle contradicts itself: {error}") from error
    del derived["producer"]  # whoever wrote it
    wrong = [name for name in derived if dump(derived[name]) != dump(config[name])]
    if wrong:
        raise ArtifactError(
            f"{BUNDLE_FILE} contradicts its members: {wrong} do not follow from them; get the "
            "bundle again"
        )
    return config, parts


def read_bundle_and_models(read: Reader) -> tuple[Json, dict[str, Any], dict[str, Any]]:
    """Return what `read_bundle` does, and the edited models that its members say lie beside them.

    Those are entries of a manifest by path in the bundle; each file is read once.

    Raises:
        ArtifactError: as `read_bundle`.
    """
    read = remembering(read)
    config, parts = read_bundle(read)
    models: dict[str, Any] = {}
    for name in parts["members"]:
        data = member_reader(read, name, config)(CONFIG_FILE, MAX_CONFIG_BYTES)
        manifest: dict[str, Any] = read_manifest(data)
        models |= {f"{name}/{file}": entry for file, entry in (manifest["merged"] or {}).items()}
    return config, parts, models


def member_reader(read: Reader, name: str, config: Mapping[str, Any]) -> Reader:
    """Return a reader of a member's files, which insists on the manifest that the bundle lists."""
    entry = config["files"][member_file(name)]

    def read_member(file: str, limit: int) -> bytes:
        data = read(f"{name}/{file}", limit)
        if file == CONFIG_FILE:
            check_file(member_file(name), data, entry, manifest=BUNDLE_FILE)
        return data

    return read_member


def _check_member(name: str, digest: object, config: Mapping[str, Any]) -> None:
    said = config["members"][name]["digest"]
    if digest != said:
        raise ArtifactError(
            f"member '{name}' is the artifact {digest}, {BUNDLE_FILE} says {said}; get the bundle "
            "again"
        )


def described_bundle(read: Reader) -> Json:
    """Return what a bundle says about itself; hashes are computed, tensors are not opened.

    Raises:
        ArtifactError: as for reading.
    """
    manifest = read(BUNDLE_FILE, MAX_CONFIG_BYTES)
    config = read_bundle_manifest(manifest)
    size = len(manifest)
    for name in config["members"]:
        member: dict[str, Any] = described(member_reader(read, name, config))
        _check_member(name, member["digest"], config)
        size += member["bytes"]
    return {**config, "bytes": size, "card": state_of_card(read, config)}


def planned_bundle(contents: BundleContents, existing: Existing) -> Change:
    """Return what to write so that the place holds exactly this bundle.

    What holds for an artifact holds for each member in its subfolder. Members that only an older
    bundle had are removed, unless somebody changed them. The bundle's manifest is the last of the
    files: until it is in place, the digests in an older one expose a mixture.

    Raises:
        InputError: if an artifact lies in the place itself, a part has no exact JSON form, or the
            bundle could not be read back.
        WriteError: if the text of the card there could not be kept.
    """
    if previous_manifest(existing) is not None:
        raise InputError(
            "an edit artifact lies where the bundle is to be written, and both would have the same "
            "README.md; choose another folder or subfolder"
        )
    previous = previous_bundle(existing)
    files: dict[str, Content] = {}
    obsolete = [] if previous is None else _dropped(contents, existing, previous)
    for name, member in contents.members.items():
        change = planned(member, ExistingPart(existing, name))
        files |= {f"{name}/{file}": data for file, data in change.files.items()}
        obsolete += [f"{name}/{file}" for file in change.obsolete]
    config, manifest = _sealed(contents, files)
    old_card = card_at(existing)
    card = new_card(config) if old_card is None else updated_card(old_card, config, previous)
    return Change({**files, CARD_FILE: card, BUNDLE_FILE: manifest}, obsolete)


def previous_bundle(existing: Existing) -> dict[str, Any] | None:
    """Return the manifest of a bundle that is there already, if it is a valid one."""
    try:
        data = existing.read(BUNDLE_FILE, MAX_CONFIG_BYTES)
        return None if data is None else read_bundle_manifest(data)
    except ArtifactError:
        return None


def _dropped(
    contents: BundleContents, existing: Existing, previous: Mapping[str, Any]
) -> list[str]:
    """Return the files of members that only the older bundle has and nobody changed since."""
    found = []
    for name in sorted(set(previous["members"]) - set(contents.members)):
        part = ExistingPart(existing, name)
        manifest = previous_manifest(part)
        if manifest is None or not part.holds(CONFIG_FILE, previous["files"][member_file(name)]):
            continue
        own = {**manifest["files"], **(manifest["merged"] or {})}
        card = card_at(part)
        found += [
            member_file(name),  # first: without it, what is left is no artifact
            *(f"{name}/{file}" for file, entry in own.items() if part.holds(file, entry)),
        ]
        if card is not None and card_state(card, manifest) == "as written":
            found.append(f"{name}/{CARD_FILE}")
    return found


def _sealed(contents: BundleContents, files: Mapping[str, Content]) -> tuple[dict[str, Any], bytes]:
    """Return the manifest's fields and its bytes, which can be read back with the files."""
    entries = {}
    for path in map_names(contents.members):
        data = files[path]
        assert isinstance(data, bytes)
        entries[path] = entry_of(data)
    fields = bundle_fields(contents)
    config = {
        **fields,
        "digest": identity(fields, {}),
        "files": entries,
        "format_version": FORMAT_VERSION,
    }
    manifest = write_manifest(config)

    def read(name: str, _: int) -> bytes:
        data = manifest if name == BUNDLE_FILE else files[name]
        return data if isinstance(data, bytes) else data.read_bytes()

    # Whatever is written can be read: the reader's own checks are the writer's.
    try:
        read_bundle(read)
    except ArtifactError as error:
        raise InputError(f"the bundle could not be read back: {error}") from error
    return config, manifest
