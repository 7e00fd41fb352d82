"""What a bundle holds, as Python values, and the same as a manifest."""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from salve_plugin.control.base import same_base
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.canonical import Json, check_json
from salve_plugin.share.composition import Composition, check_composition
from salve_plugin.share.contents import Measures, check_measures, evaluation_fields, manifest_of
from salve_plugin.share.producer import producer

MAX_MEMBERS = 64
COMPOSES_BY = "product"


@dataclass(frozen=True, eq=False)
class BundleContents:
    """The parts of a bundle.

    Attributes:
        members: the artifacts by name; the name is also that of the member's subfolder.
        composition: what all of them together make of the base, see `EditBundle.of`.
        evaluation: the same measures before any and after all of the edits,
            `{"before": {name: number}, "after": {name: number}}`.
        data: what the evaluation was computed on: name to text, number, truth value or None.
    """

    members: Mapping[str, EditArtifact]
    composition: Composition
    _: KW_ONLY
    evaluation: Measures | None = None
    data: Mapping[str, str | int | float | bool | None] | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            InputError: naming the part that does not fit.
        """
        object.__setattr__(self, "members", dict(sorted(self.members.items())))
        check_members(self.members)
        check_composition(self.members, self.composition)
        check_measures(self.evaluation)


def check_members(members: Mapping[str, EditArtifact]) -> None:
    """Raise unless these are different edits of one base with plain names.

    Raises:
        InputError: naming the member that does not fit.
    """
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise InputError(f"a bundle has 1 to {MAX_MEMBERS} members; got {len(members)}")
    for name in members:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
            raise InputError(
                f"member name {name[:100]!r} is not a plain name; use up to 64 lower-case letters, "
                "digits, '_' and '-'"
            )
    seen: dict[str, str] = {}
    first_name, first = next(iter(members.items()))
    for name, member in members.items():
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


def bundle_fields(contents: BundleContents) -> Json:
    """Return the manifest's fields that say what the bundle is; sealing adds the rest.

    Raises:
        InputError: if a part holds a value that JSON has no exact form for.
    """
    members = contents.members
    config: Json = {
        "base": {"description": dict(next(iter(members.values())).edit.base.description)},
        "composition": contents.composition.to_json(),
        "data": dict(contents.data or {}),
        "evaluation": evaluation_fields(contents.evaluation),
        "labels": _common_labels(members),
        "members": {name: _summary(member) for name, member in members.items()},
        "producer": producer(),
        "requires": [COMPOSES_BY],
    }
    check_json(config)
    return config


def _summary(member: EditArtifact) -> Json:
    said = manifest_of(member)
    return {
        "digest": member.digest,
        "edit": said["edit"],
        "evaluation": said["evaluation"],
    }


def _common_labels(members: Mapping[str, EditArtifact]) -> list[str] | None:
    """Return the class names that members have, None if they have none or different ones."""
    known = {tuple(member.labels) for member in members.values() if member.labels is not None}
    return list(known.pop()) if len(known) == 1 else None
