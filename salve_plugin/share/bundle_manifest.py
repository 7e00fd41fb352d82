"""`edit_bundle.json`: the typed fields of a bundle's manifest, and how they follow from members."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from salve_plugin.control.base import same_base
from salve_plugin.control.edit_fields import EditFields
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.composition import Composition, MemberName
from salve_plugin.share.edit_manifest import CONFIG_FILE, Data, EvaluationRecord, Labels
from salve_plugin.store.json import Json, check_json
from salve_plugin.store.producer import Producer
from salve_plugin.store.record import PLAIN_NAME, Notes, Record, Sha256, as_json, check_plain_name
from salve_plugin.store.seal import FileEntry, Version
from salve_plugin.store.tensors import check_names

if TYPE_CHECKING:
    from salve_plugin.share.bundle import EditBundle

MAX_MEMBERS = 64
COMPOSES_BY = "product-and-sum"

MemberFile = Annotated[str, Meta(pattern=rf"^{PLAIN_NAME}/edit_config\.json$(?!\n)")]


@dataclass(frozen=True)
class DescribedBase(Record):
    """The model that all members were made for, as each of them describes it."""

    description: Notes


@dataclass(frozen=True)
class MemberSummary(Record):
    """A member, repeated here so that it can be read without it; all of it must agree."""

    digest: Sha256
    edit: EditFields
    evaluation: EvaluationRecord | None


@dataclass(frozen=True)
class BundleManifest(Record):
    """`edit_bundle.json`: several edit artifacts of one base, and what they make of it together.

    The file is JSON with sorted keys, an indent of two, in UTF-8, one newline at the end, without
    NaN or repeated keys. Nothing in it is imported or executed; members' names, from a closed
    pattern, are the only part of it that becomes a path.

    Attributes:
        base: the members' base. Its weights are in `composition`.
        composition: what all members together make of it.
        data: what the evaluation was computed on, for people.
        digest: identity: SHA-256 over this object without digest, files, format_version,
            manifest_sha256 and producer, as JSON with sorted keys and no spaces, preceded by its
            length as eight little-endian bytes.
        evaluation: the same measures before any and after all of the edits.
        files: the manifest of every member. It lists the member's other files.
        format_version: major and minor number; a reader refuses another major number.
        labels: class names by row; null where no member has them or two differ.
        manifest_sha256: SHA-256 over the bytes of this file without the one line of this field.
        members: the edits, by the name of their subfolder.
        producer: the program that wrote it.
        requires: what a reader must know. product-and-sum: the edits of one parameter compose as
            its pristine rows times the product of the gates' factors, plus the sum of the low-rank
            terms, each computed from the pristine rows; products and sums in float64 in the order
            of the edits' digests, cast once to the rows' type. Rows to which nothing is added are
            multiplied in float32 unless they are float64.
    """

    base: DescribedBase
    composition: Composition
    data: Data
    digest: Sha256
    evaluation: EvaluationRecord | None
    files: Annotated[dict[MemberFile, FileEntry], Meta(min_length=1, max_length=MAX_MEMBERS)]
    format_version: Version
    labels: Labels | None
    manifest_sha256: Sha256
    members: Annotated[dict[MemberName, MemberSummary], Meta(min_length=1, max_length=MAX_MEMBERS)]
    producer: Producer
    requires: Annotated[list[Literal["product-and-sum"]], Meta(min_length=1, max_length=1)]

    def __post_init__(self) -> None:
        """Check that the manifests of exactly the members are listed.

        Raises:
            ArtifactError: names those that are missing or too many.
        """
        expected = [member_file(name) for name in self.members]
        check_names(self.files, expected, "manifests of members")


def member_file(name: str) -> str:
    """Return the path of a member's manifest in the bundle."""
    return f"{name}/{CONFIG_FILE}"


def check_members(members: Mapping[str, EditArtifact]) -> None:
    """Raise unless these are different edits of one base with plain names.

    Raises:
        InputError: naming the member that does not fit.
    """
    known = isinstance(members, Mapping)
    if not known or not all(isinstance(each, EditArtifact) for each in members.values()):
        raise InputError(
            f"members are {members!r:.80}; expected artifacts by their names, {{name: artifact}}"
        )
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise InputError(f"a bundle has 1 to {MAX_MEMBERS} members; got {len(members)}")
    for name in members:
        check_plain_name(name, "member")
    seen: dict[str, str] = {}
    first_name, first = next(iter(members.items()))
    for name, member in members.items():
        # The first member with this edit, which is itself unless it was seen before.
        other = seen.setdefault(member.edit.digest, name)
        if other != name:
            raise InputError(
                f"members '{other}' and '{name}' are the same edit; give one of them, with the sum "
                "of their effects if that is what is wanted"
            )
        if not same_base(first.edit.base, member.edit.base):
            raise InputError(
                f"members '{first_name}' and '{name}' have different bases: "
                f"{first.edit.base.to_json()} and {member.edit.base.to_json()}; a bundle is of one"
            )


def bundle_fields(bundle: "EditBundle") -> Json:
    """Return the manifest's fields that say what a bundle is; sealing adds the rest.

    Raises:
        InputError: if a part holds a value that JSON has no exact form for.
    """
    members = bundle.members
    config: Json = as_json({
        "base": {"description": next(iter(members.values())).edit.base.description},
        "composition": bundle.composition,
        "data": bundle.data or {},
        "evaluation": bundle.evaluation,
        "labels": _common_labels(members),
        "members": {name: _summary(member) for name, member in members.items()},
        "requires": [COMPOSES_BY],
    })  # fmt: skip
    check_json(config)
    return config


def _summary(member: EditArtifact) -> Json:
    # From the manifest, so that both say it in the same words.
    said = member.manifest
    return {"digest": member.digest, "edit": said["edit"], "evaluation": said["evaluation"]}


def _common_labels(members: Mapping[str, EditArtifact]) -> list[str] | None:
    """Return the class names that members have, None if they have none or different ones."""
    known = {tuple(member.labels) for member in members.values() if member.labels is not None}
    return list(known.pop()) if len(known) == 1 else None
