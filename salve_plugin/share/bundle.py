"""Several edits of one model as one thing: shared, applied and undone together."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from salve_plugin.control.application import revert_all_
from salve_plugin.control.edit import Edit
from salve_plugin.hooks import HookedModel
from salve_plugin.share.artifact import EditArtifact, located
from salve_plugin.share.bundle_application import apply_members_, revert_members_
from salve_plugin.share.bundle_contents import BundleContents, bundle_fields, check_members
from salve_plugin.share.bundle_files import (
    BUNDLE_FILE,
    described_bundle,
    planned_bundle,
    read_bundle,
    read_bundle_and_models,
)
from salve_plugin.share.canonical import Json
from salve_plugin.share.composition import Composition
from salve_plugin.share.existing import ExistingFolder
from salve_plugin.share.folder import replace_files
from salve_plugin.share.hub.access import Access, Token
from salve_plugin.share.hub.address import Origin
from salve_plugin.share.hub.push import Pushed, Target, push
from salve_plugin.share.manifest import identity
from salve_plugin.share.reading import check_model
from salve_plugin.share.sources import PathLike, Where, open_source


@dataclass(frozen=True, eq=False)
class EditBundle(BundleContents):
    """Several edits of one model, with a record of what they make of it together.

    The folder holds `edit_bundle.json` (sealed like an artifact's manifest), `README.md`, and each
    member as a complete artifact in a subfolder of its name, which can be loaded alone:
    `EditArtifact.from_pretrained(source, subfolder=name)`.

    The record names, for every weight that a member touches, its SHA-256 before and after all of
    the edits, and the overlaps: pairs of members that scale the same rows, where their effects
    multiply. The order of the members has no meaning.

    Example:
        >>> bundle = EditBundle.of(hooked, {"no-church": one, "no-truck": two}) # doctest: +SKIP
        >>> bundle.save_pretrained("safer-resnet")                              # doctest: +SKIP
        >>> EditBundle.from_pretrained("safer-resnet").apply_(model)            # doctest: +SKIP
    """

    origin: Origin | None = field(default=None, init=False, repr=False)
    """Where on the Hub the bundle was read from; None if it was not."""

    @classmethod
    def of(
        cls, hooked: HookedModel | nn.Module, members: Mapping[str, EditArtifact], **parts: Any
    ) -> "EditBundle":
        """Return a bundle whose composition is computed from the weights themselves.

        The model is not changed, and may have any of the edits (and others) applied or not.

        Args:
            hooked: the members' base.
            members: artifacts by name: up to 64 lower-case letters, digits, "_" and "-".
            **parts: `evaluation` and `data`, see `BundleContents`.

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
    def digest(self) -> str:
        """The bundle's identity: of its members' digests, their names and the composition."""
        return identity(bundle_fields(self), {})

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
            BaseMismatchError: if the result would not be the bundle's base.
        """
        revert_members_(model, self.members, self.composition)

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

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the bundle into a folder; the network is never used.

        What holds for `EditArtifact.save_pretrained` holds here, over an older bundle too: all or
        nothing, the same bundle gives the same bytes, files of others stay. Members that only the
        older bundle had are removed, unless somebody changed them.

        Returns:
            The folder.

        Raises:
            InputError: if the folder itself holds an artifact, or as for an artifact.
            WriteError: if the disk is full or the folder cannot be written; nothing is changed.
        """
        path = Path(folder)
        change = planned_bundle(self, ExistingFolder(path))
        replace_files(path, change.files, obsolete=change.obsolete)
        return path

    @classmethod
    def from_pretrained(cls, source: PathLike, **where: Unpack[Where]) -> "EditBundle":
        """Read a bundle with all its members, everything checked before anything is used.

        Args:
            source: a local folder, or a Hub repository as "user/name".
            **where: see `salve_plugin.share.sources.Where`.

        Raises:
            SalveError: as `EditArtifact.from_pretrained`.
        """
        place = open_source(source, BUNDLE_FILE, **where)
        _, parts = place.use(read_bundle)
        return located_bundle(cls(**parts), place.origin)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        token: Token = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        tag: str | None = None,
        endpoint: str | None = None,
    ) -> Pushed:
        """Put the bundle with all its members on the Hub in one commit.

        Arguments, result and errors are those of `EditArtifact.push_to_hub`; what holds for
        `save_pretrained` over an older bundle holds here too.
        """
        target = Target(
            repo_id,
            revision=revision,
            subfolder=subfolder,
            private=private,
            commit_message=commit_message,
            create_pr=create_pr,
            tag=tag,
            access=Access(endpoint, token),
        )
        return push(target, partial(planned_bundle, self), f"Add edit bundle {self.digest[:12]}")

    @classmethod
    def verify(cls, source: PathLike, **where: Unpack[Where]) -> str:
        """Check everything that reading checks and return the bundle's digest.

        Edited models that members list are checked too, as by `EditArtifact.verify`.

        Raises:
            SalveError: as `from_pretrained`.
        """
        place = open_source(source, BUNDLE_FILE, **where)
        config, _, models = place.use(read_bundle_and_models)
        check_model(place, models)
        return str(config["digest"])

    @staticmethod
    def inspect(source: PathLike, **where: Unpack[Where]) -> Json:
        """Return what a bundle says about itself, after checking the digest of every file.

        Only JSON is read and hashes are computed; tensors are not opened. Beside the fields of
        `edit_bundle.schema.json` there are `bytes`, `card` and `origin`, as for an artifact.

        Raises:
            SalveError: as for reading.
        """
        place = open_source(source, BUNDLE_FILE, **where)
        said = place.use(described_bundle)
        origin = place.origin
        return {**said, "origin": None if origin is None else origin.reference.to_json()}


def located_bundle(bundle: EditBundle, origin: Origin | None) -> EditBundle:
    """Return the bundle, which now remembers where it was read from, as its members do."""
    object.__setattr__(bundle, "origin", origin)
    for name, member in bundle.members.items():
        located(member, None if origin is None else _within(origin, name))
    return bundle


def _within(origin: Origin, name: str) -> Origin:
    """Return the exact place of a member."""
    reference = origin.reference
    subfolder = name if reference.subfolder is None else f"{reference.subfolder}/{name}"
    return replace(origin, reference=replace(reference, subfolder=subfolder))
