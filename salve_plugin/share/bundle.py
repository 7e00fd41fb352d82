"""Several edits of one model as one thing: shared, applied and undone together."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import nn

from salve_plugin.control.application import revert_all_
from salve_plugin.control.edit import Edit
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.faces.one_line import listed, shortened
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.audit import Audit
from salve_plugin.share.bundle_application import apply_members_, audit_members, revert_members_
from salve_plugin.share.bundle_manifest import (
    COMPOSES_BY,
    BundleManifest,
    bundle_fields,
    check_members,
    member_file,
)
from salve_plugin.share.card_bundle import bundle_card
from salve_plugin.share.composition import Composition, check_composition
from salve_plugin.share.edit_manifest import BUNDLE_FILE, CONFIG_FILE
from salve_plugin.share.edit_parts import Measures, check_kinds, check_measures
from salve_plugin.share.model_files import own_files
from salve_plugin.share.model_state import StateSource
from salve_plugin.store.card import CARD_FILE, card_at
from salve_plugin.store.digest import content_digest
from salve_plugin.store.files import FileReader
from salve_plugin.store.hub.address import Origin
from salve_plugin.store.json import Json
from salve_plugin.store.place import Content, Existing, ExistingPart
from salve_plugin.store.seal import Format, identity_fields
from salve_plugin.store.stored import Opened, Packed, Stored


@dataclass(frozen=True, eq=False)
class EditBundle(Stored, Tabular):
    """Several edits of one model, with a record of what they make of it together.

    The folder holds `edit_bundle.json` (sealed like an artifact's manifest), `README.md`, and each
    member as a complete artifact in a subfolder of its name, which can be loaded alone:
    `EditArtifact.from_pretrained(source, subfolder=name)`. The bundle's manifest lists that of
    every member with its SHA-256, and those list the members' other files. Members that only an
    older bundle had are removed on saving over it, unless somebody changed them.

    The record names, for every weight that a member touches, its SHA-256 before and after all of
    the edits, and the overlaps: pairs of members that scale the same rows, where their effects
    multiply. The order of the members has no meaning.

    Attributes:
        members: the artifacts by name; the name is also that of the member's subfolder.
        composition: what all of them together make of the base, see `EditBundle.of`.
        evaluation: the same measures before any and after all of the edits,
            `{"before": {name: number}, "after": {name: number}}`.
        data: what the evaluation was computed on: name to text, number, truth value or None.
        origin: where on the Hub it was read from; None if it was not, or is another one by now.

    Example:
        >>> bundle = EditBundle.of(hooked, {"no-church": one, "no-truck": two}) # doctest: +SKIP
        >>> bundle.save_pretrained("safer-resnet")                              # doctest: +SKIP
        >>> EditBundle.from_pretrained("safer-resnet").apply_(model)            # doctest: +SKIP
    """

    format: ClassVar[Format] = Format(
        name="bundle",
        title="edit bundle",
        manifest=BUNDLE_FILE,
        record=BundleManifest,
        card=bundle_card,
        features=frozenset({COMPOSES_BY}),
    )

    members: Mapping[str, EditArtifact]
    composition: Composition
    _: KW_ONLY
    evaluation: Measures | None = None
    data: Mapping[str, str | int | float | bool | None] | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            InputError: naming the part that does not fit.
        """
        # By name, as the files have them: the order of the members has no meaning.
        check_members(self.members)
        object.__setattr__(self, "members", dict(sorted(self.members.items())))
        check_kinds(self)
        if not isinstance(self.composition, Composition):
            raise InputError(
                f"composition is {self.composition!r:.80}; make the bundle with EditBundle.of"
            )
        check_composition(self.members, self.composition)
        check_measures(self.evaluation)
        if self.origin is not None and self.origin.digest != self.digest:
            object.__setattr__(self, "origin", None)  # made from what was read, by `replace`

    def __repr__(self) -> str:
        """Say in one line which edits it holds."""
        return shortened(f"<EditBundle {self.digest[:12]}: {listed(self.members)}>")

    def as_table(self) -> Table:
        """Return what each member does."""
        rows = [
            (name, one.edit.kind, one.edit.amount, one.edit.site.name, one.digest[:12])
            for name, one in self.members.items()
        ]
        head = ("member", "what", "how much", "site", "digest")
        return Table(f"Edit bundle {self.digest[:12]}", head, rows)

    @classmethod
    def of(
        cls, hooked: HookedModel | nn.Module, members: Mapping[str, EditArtifact], **parts: Any
    ) -> "EditBundle":
        """Return a bundle whose composition is computed from the weights themselves.

        The model is not changed, and may have any of the edits (and others) applied or not.

        Args:
            hooked: the members' base.
            members: artifacts by name: up to 64 lower-case letters, digits, "_" and "-".
            **parts: `evaluation` and `data`, as for the constructor.

        Raises:
            BaseMismatchError: if the model is not the one that a member was made for.
            UnsupportedModelError: if two members call one weight by different paths.
            InputError: if a name is not plain, two members are the same edit or have different
                bases, or a part does not fit.
        """
        check_members(members)
        edits = {name: member.edit for name, member in members.items()}
        return cls(members, Composition.of(hooked, edits), **parts)

    @cached_property
    def manifest(self) -> Json:
        """The manifest's fields that say what the bundle is; computed once."""
        return bundle_fields(self)

    @cached_property
    def digest(self) -> str:
        """The bundle's identity: of its members' digests, their names and the composition."""
        return content_digest(self.manifest, {})

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The members' edits, in the order of their names."""
        return tuple(member.edit for member in self.members.values())

    def apply_(self, model: nn.Module) -> None:
        """Apply every member that is not on the model yet, all or none of them.

        The weights are then hashed and must be exactly those that the bundle records.

        Args:
            model: the bare model or the hooked one; members may be on it already.

        Raises:
            BaseMismatchError: if the model is not the one that the bundle was made for.
            EditStateError: if all members are on it already, other edits are on the same weights,
                edited weights were changed since, or the result is not the recorded one. After
                this, as after any error, every bit of the model is as it was.
        """
        apply_members_(model, self.edits, self.composition)

    def revert_(self, model: nn.Module) -> None:
        """Undo every member that is on the model, all or none of them, bit for bit.

        A model that was saved with all members applied and loaded again does not know of them. It
        is restored from the pristine rows that the members carry, provided that together they
        carry every touched row, and that the weights are exactly the recorded ones.

        Raises:
            EditStateError: if no member is in the model, its weights were changed since, or the
                members do not carry the pristine rows that are needed.
            BaseMismatchError: if the touched parameters would not be those of the bundle's base;
                others are not compared.
        """
        revert_members_(model, self.members, self.composition)

    def audit(self, base: StateSource | None, edited: StateSource) -> Audit:
        """Say whether a model is the base with exactly all members and nothing else.

        Args:
            base: as for `EditArtifact.audit`; None if together the members carry every touched row.
            edited: as for `EditArtifact.audit`.

        Raises:
            SalveError: as `EditArtifact.audit`.
        """
        return audit_members(self.members, base, edited)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Apply the bundle for the length of the context; it is reverted on error too.

        Members that were on the model before stay on it.
        """
        added = apply_members_(model, self.edits, self.composition)
        try:
            yield
        finally:
            revert_all_(model, added)

    def packed(self, existing: Existing, previous: dict[str, Any] | None) -> Packed:
        """Return what is to be written; see `Stored.packed`.

        Raises:
            InputError: if an artifact lies in the place itself, or a part has no exact JSON form.
        """
        if EditArtifact.format.previous(existing) is not None:
            raise InputError(
                "an edit artifact lies where the bundle is to be written, and both would have the "
                "same README.md; choose another folder or subfolder"
            )
        files: dict[str, Content] = {}
        listed: dict[str, bytes] = {}
        obsolete = [] if previous is None else self._dropped(existing, previous)
        for name, member in self.members.items():
            # As if it were saved alone: what is kept, removed or refused in its subfolder is the
            # same.
            change = member.planned(ExistingPart(existing, name))
            files |= {f"{name}/{file}": data for file, data in change.files.items()}
            obsolete += [f"{name}/{file}" for file in change.obsolete]
            manifest = change.files[CONFIG_FILE]
            assert isinstance(manifest, bytes)
            listed[member_file(name)] = manifest
        return Packed({**self.manifest, "digest": self.digest}, listed, files, obsolete)

    def _dropped(self, existing: Existing, previous: Mapping[str, Any]) -> list[str]:
        """Return the files of members that only the older bundle has and nobody changed since."""
        dropped = []
        for name in sorted(set(previous["members"]) - set(self.members)):
            part = ExistingPart(existing, name)
            manifest = EditArtifact.format.previous(part)
            if manifest is None or not part.holds(
                CONFIG_FILE, previous["files"][member_file(name)]
            ):
                continue
            # The manifest first: without it, what is left is no artifact.
            names = [CONFIG_FILE, *own_files(part, manifest, set())]
            card = card_at(part)
            if card is not None and EditArtifact.format.card(manifest).state(card) == "as written":
                names.append(CARD_FILE)
            dropped += [f"{name}/{file}" for file in names]
        return dropped

    def read_back(self, manifest: bytes, listed: Mapping[str, bytes]) -> None:
        """Raise ArtifactError unless the manifest fits the members, each read back before."""
        # From the members as they are: reading each of them back from its files was part of
        # planning it.
        self._assembled(*self.format.read(manifest), self.members, None)

    @classmethod
    def opened(cls, read: FileReader) -> Opened:
        """Return what lies at a place, with its members; see `Stored.opened`."""
        whole = super().opened(read)
        config = whole.config
        # Of the manifest alone, since the members are in it by their digests.
        cls.format.check_identity(content_digest(identity_fields(config), {}), config)
        parts = {}
        for name, summary in config["members"].items():
            said = summary["digest"]
            part = parts[name] = EditArtifact.opened(_inside(name, whole, read))
            if part.config["digest"] != said:
                raise ArtifactError(
                    f"member '{name}' is the artifact {part.config['digest']}, {BUNDLE_FILE} says "
                    f"{said}; one of them was changed by hand"
                )
        manifests = sum(map(len, whole.files.values()))  # the members count them, too
        size = whole.size - manifests + sum(part.size for part in parts.values())
        return replace(whole, parts=parts, size=size)

    @classmethod
    def built(cls, opened: Opened, origin: Origin | None) -> "EditBundle":
        """Return the bundle from its files; see `Stored.built`."""
        members = {
            name: EditArtifact.built(part, origin and origin.inside(name, part.config["digest"]))
            for name, part in opened.parts.items()
        }
        return cls._assembled(opened.config, opened.record, members, origin)

    @classmethod
    def _assembled(
        cls, config: Mapping[str, Any], record: BundleManifest,
        members: Mapping[str, EditArtifact], origin: Origin | None,
    ) -> "EditBundle":  # fmt: skip
        with cls.format.contradictions():
            composition, evaluation, data = record.composition, config["evaluation"], record.data
            bundle = cls(members, composition, evaluation=evaluation, data=data, origin=origin)
            derived = bundle.manifest
        cls.format.check_derived(derived, config, files="its members")
        return bundle

    @classmethod
    def beside(cls, opened: Opened) -> Mapping[str, Any]:
        """Return the entries of the members' edited models; see `Stored.beside`."""
        return {
            f"{name}/{file}": entry
            for name, part in opened.parts.items()
            for file, entry in EditArtifact.beside(part).items()
        }


def _inside(name: str, whole: Opened, read: FileReader) -> FileReader:
    """Return a reader of a member's files, which gives the manifest that the bundle lists."""

    def read_member(file: str, limit: int) -> bytes:
        # The bytes that were checked already: read again, they could be others by now.
        known = whole.files.get(f"{name}/{file}")
        return read(f"{name}/{file}", limit) if known is None else known

    return read_member
