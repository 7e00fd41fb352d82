"""The edit artifact: an edit that can be mailed, checked, applied elsewhere and undone."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from salve_plugin.control.applied_edits import status
from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.tables import prediction_lines
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.control.saved import pristine_rows, restore_rows_
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import ArtifactError, EditStateError, InputError
from salve_plugin.faces.one_line import shortened
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel
from salve_plugin.share.audit import Audit, audit
from salve_plugin.share.card_text import edit_card
from salve_plugin.share.difference import Difference, difference
from salve_plugin.share.edit_manifest import (
    BUNDLE_FILE,
    CONFIG_FILE,
    FEATURES,
    TENSOR_FILE,
    EditManifest,
    manifest_of,
    parts_of,
    tensors_of,
)
from salve_plugin.share.edit_parts import (
    Measures,
    check_assessment,
    check_classes,
    check_critical,
    check_kinds,
    check_measures,
    check_networks,
    check_pristine,
    check_source,
)
from salve_plugin.share.model_files import check_room, kept_model, own_files
from salve_plugin.share.model_state import StateSource
from salve_plugin.share.pictures import MAX_PICTURES, check_pictures, picture_file, picture_name
from salve_plugin.store.digest import content_digest
from salve_plugin.store.hub.address import Origin
from salve_plugin.store.json import Json
from salve_plugin.store.place import Existing
from salve_plugin.store.reference import Reference
from salve_plugin.store.seal import FileEntry, Format, identity_fields
from salve_plugin.store.source import Where, open_repository
from salve_plugin.store.stored import Opened, Packed, Stored
from salve_plugin.store.tensors import check_described, decode_tensors, encode_tensors
from salve_plugin.validate.plots import ALPHA_CRIT, alpha_crit_picture


@dataclass(frozen=True, eq=False)
class EditArtifact(Stored, Tabular):
    """An edit with its evidence, as a folder that nobody can change unnoticed.

    The folder holds `edit_config.json` (what was edited, in which model, with what effect; sealed
    by digests), `edit.safetensors` (direction, pristine rows, critical strengths per image), the
    pictures, and `README.md` (the model card). Other files in the folder are left alone.

    Sizes: the recipe alone (direction and manifest) takes a few kilobytes, critical strengths 32
    bytes an image. Pristine rows take as much as the touched weights: all rows of a ResNet-18 head
    are 2 MB (4 % of the checkpoint), one row is 2 kB. Leave them out (`pristine=None`) where only
    the recipe is to travel; it then reverts only in the process that applied it.

    Attributes:
        edit: what is done to the model.
        dictionary: where the edit's direction comes from. Its digest is always recorded; its
            tensors only with `embed_dictionary`.
        embed_dictionary: whether the dictionary itself travels in the artifact.
        dictionary_learner: name of the dictionary's learner; taken from `dictionary` if given.
        dictionary_at: where on the Hub the dictionary is, see `Dictionary.push_to_hub`; taken
            from `dictionary` if that came from there.
        alpha_crit: exact critical strengths, stored per image and summarized per class.
        assessment: what the edit costs and achieves, see `assess`; `salve evaluate` repeats it.
        evaluation: the same measures before and after the edit,
            `{"before": {name: number}, "after": {name: number}}`; those of the assessment if left
            out.
        pristine: by weight path, the touched rows without any edit, (rows, width): enough to
            undo the edit in a model that was saved in edited form.
        pictures: PNG files by name, shown in the card.
        labels: names of the classes, by row of the classifier; those of `alpha_crit` if left out.
        data: what the evidence was computed on: name to text, number, truth value or None.
        origin: where on the Hub it was read from; None if it was not, or is another one by now.

    Example:
        >>> artifact = EditArtifact.of(hooked, edit, alpha_crit=crit)   # doctest: +SKIP
        >>> artifact.save_pretrained("espresso")                        # doctest: +SKIP
        >>> EditArtifact.from_pretrained("espresso").edit.apply_(model) # doctest: +SKIP
    """

    format: ClassVar[Format] = Format(
        name="artifact",
        title="edit",
        manifest=CONFIG_FILE,
        record=EditManifest,
        card=edit_card,
        features=FEATURES,
    )

    edit: Edit
    _: KW_ONLY
    dictionary: Dictionary | None = None
    embed_dictionary: bool = False
    dictionary_learner: str | None = None
    dictionary_at: Reference | None = None
    alpha_crit: AlphaCrit | None = None
    assessment: Assessment | None = None
    evaluation: Measures | None = None
    pristine: Mapping[str, Tensor] | None = None
    pictures: Mapping[str, bytes] | None = None
    labels: Sequence[str] | None = None
    data: Mapping[str, str | int | float | bool | None] | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        """Take over what other parts know, and check that all belong together.

        Raises:
            InputError: if a part is of another kind, the dictionary or the assessment is not the
                edit's, pristine rows do not fit the edit's base, a measure is missing before or
                after, a value is not finite, or a picture is none.
            BaseMismatchError: if the dictionary or the critical strengths are known to be of
                another network than the edit's base.
        """
        check_kinds(self)
        # Frozen for everybody else: what one part knows of another is filled in once, here.
        if self.dictionary is not None:
            object.__setattr__(self, "dictionary_learner", self.dictionary.learner)
            if self.dictionary_at is None and self.dictionary.origin is not None:
                object.__setattr__(self, "dictionary_at", self.dictionary.origin)
        if self.labels is None and self.alpha_crit is not None:
            object.__setattr__(self, "labels", self.alpha_crit.classes)
        if self.dictionary is not None:
            check_source(self.edit, self.dictionary)
        elif self.embed_dictionary:
            raise InputError("embed_dictionary=True needs the dictionary itself: pass dictionary=")
        if self.dictionary_at is not None and self.edit.dictionary_digest is None:
            raise InputError("dictionary_at is given, but the edit does not come from a dictionary")
        check_classes(self.edit, self.labels, self.alpha_crit)
        if self.alpha_crit is not None:
            check_critical(self.edit, self.alpha_crit)
        check_networks(self.edit, self.dictionary, self.alpha_crit)
        if self.pristine is not None:
            check_pristine(self.edit, self.pristine)
            # Copies: what was given may be a model's own weights, which applying the edit changes.
            own = {path: rows.detach().clone() for path, rows in self.pristine.items()}
            object.__setattr__(self, "pristine", own)
        # Where both are given they are compared below: two sources could contradict each other.
        if self.assessment is not None and self.evaluation is None:
            object.__setattr__(self, "evaluation", self.assessment.measures)
        check_measures(self.evaluation)
        if self.assessment is not None:
            check_assessment(self.edit, self.assessment, self.labels, self.evaluation or {})
        check_pictures(self.pictures or {})
        if self.origin is not None and self.origin.digest != self.digest:
            object.__setattr__(self, "origin", None)  # made from what was read, by `replace`

    @classmethod
    def of(
        cls, hooked: HookedModel | nn.Module, edit: Edit, *, plot: bool = True, **parts: Any
    ) -> "EditArtifact":
        """Return an artifact that carries the pristine rows, taken from the model.

        The model may have the edit (and others) applied or not.

        Args:
            hooked: the model that the edit was made for.
            edit: the edit.
            plot: whether `alpha_crit`, if given, is drawn as the picture "alpha-crit", 30 to 50
                kilobytes, unless `pictures` has one of that name.
            **parts: as for the constructor.

        Raises:
            BaseMismatchError: if the model has no such layers.
            InputError: if its weights are not those of the edit's base, or a part does not fit.
        """
        # All parts are checked before a picture of them is drawn.
        if not isinstance(edit, Edit):
            raise InputError(f"an edit was expected, got {type(edit).__name__}")
        artifact = cls(edit, pristine=pristine_rows(hooked, edit), **parts)
        critical, pictures = artifact.alpha_crit, dict(artifact.pictures or {})
        if not plot or critical is None or not len(critical.values):
            return artifact
        if ALPHA_CRIT in pictures or len(pictures) >= MAX_PICTURES:
            return artifact
        # The recording may have known no names of classes, and the artifact does.
        named = replace(critical, classes=tuple(artifact.labels) if artifact.labels else None)
        pictures[ALPHA_CRIT] = alpha_crit_picture(named, edit)
        return replace(artifact, pictures=pictures)

    def __repr__(self) -> str:
        """Say in one line what the edit is and what comes with it."""
        return shortened(
            f"<EditArtifact {self.digest[:12]}: {self.edit.kind} of '{self.edit.site.name}', "
            f"{self.edit.amount}; with {self._parts}>"
        )

    def as_table(self) -> Table:
        """Return what the edit does, what comes with it, and what it was found to do."""
        measured = self.assessment
        notes = () if measured is None else (measured.verdict, *prediction_lines(measured))
        rows = [*self.edit.as_table().rows, ("comes with", self._parts), ("origin", self.origin)]
        rows = [(name, value) for name, value in rows if value is not None]
        return Table(f"Edit artifact {self.digest[:12]}", ("", ""), rows, notes)

    @property
    def _parts(self) -> str:
        critical = self.alpha_crit
        parts = {
            "its dictionary": self.dictionary is not None and self.embed_dictionary,
            f"critical strengths of {0 if critical is None else len(critical.values)} images":
                critical is not None,
            "an assessment": self.assessment is not None,
            "pristine rows": self.pristine is not None,
            "pictures": bool(self.pictures),
        }  # fmt: skip
        return ", ".join(part for part, there in parts.items() if there) or "nothing else"

    @cached_property
    def manifest(self) -> Json:
        """The manifest's fields that say what the artifact is; computed once."""
        return manifest_of(self)

    @cached_property
    def digest(self) -> str:
        """The artifact's identity: the same for the same contents, however they are stored.

        Hex SHA-256 over every tensor and the manifest without `producer`, `format_version`,
        `files` and the digests themselves.
        """
        return content_digest(self.manifest, tensors_of(self))

    def diff(self, other: "EditArtifact") -> Difference:
        """Return what differs from another artifact, wherever the two are from.

        The result is false, with the same digest on both sides, or true and readable: `print` it.

        Raises:
            InputError: if the other is no artifact.
        """
        if not isinstance(other, EditArtifact):
            raise InputError(f"{other!r:.80} is no artifact of an edit; give an EditArtifact")
        return difference(self, other)

    def packed(
        self,
        existing: Existing,
        previous: dict[str, Any] | None,
        model: Mapping[str, Path] | None = None,
    ) -> Packed:
        """Return what is to be written; see `Stored.packed`.

        An edited model that lies beside an artifact with the same edit stays and stays listed;
        beside another edit it would be a lie, and is removed unless somebody changed it.

        Args:
            existing: what is there.
            previous: the manifest there.
            model: local files of the edited model, to lie beside the artifact, by their names.

        Raises:
            InputError: if a part has no exact JSON form, a bundle lies in the place itself, or the
                model would replace one that is not the artifact's.
        """
        if previous is None and existing.has(BUNDLE_FILE):
            raise InputError(
                "an edit bundle lies where the artifact is to be written, and both would have the "
                "same README.md; choose another folder or subfolder"
            )
        if model is None:
            merged = kept_model(existing, previous, self.digest)
        else:
            merged = {name: FileEntry.of(path) for name, path in model.items()}
            check_room(existing, previous, merged)
        pictures = sorted((self.pictures or {}).items())
        files = {
            TENSOR_FILE: encode_tensors(tensors_of(self)),
            **{picture_file(name): data for name, data in pictures},
        }
        fields = {**self.manifest, "digest": self.digest, "merged": merged}
        obsolete = own_files(existing, previous, {*files, *(merged or {})})
        return Packed(fields, files, dict(model or {}), obsolete)

    @classmethod
    def built(cls, opened: Opened, origin: Origin | None) -> "EditArtifact":
        """Return the artifact from its files; see `Stored.built`."""
        config = opened.config
        tensors = decode_tensors(opened.files[TENSOR_FILE], TENSOR_FILE)
        # In this order: first that the files belong together, then what they make, and last that
        # nothing in them says anything else than what was made.
        digest = content_digest(identity_fields(config), tensors)
        cls.format.check_identity(digest, config)
        check_described(tensors, config["tensors"], TENSOR_FILE)
        pictures = {
            picture_name(name): data for name, data in opened.files.items() if name != TENSOR_FILE
        }
        with cls.format.contradictions():
            parts = parts_of(opened.record, tensors)
            artifact = cls(**parts, pictures=pictures or None, origin=origin)
            derived = artifact.manifest
        cls.format.check_derived(derived, config, files=TENSOR_FILE)
        vars(artifact)["digest"] = digest  # of the same fields and tensors, as was just checked
        return artifact

    @classmethod
    def beside(cls, opened: Opened) -> Mapping[str, Any]:
        """Return the entries of the edited model's files; see `Stored.beside`."""
        return opened.config["merged"] or {}

    def load_dictionary(self, **where: Unpack[Where]) -> Dictionary:
        """Return the dictionary that the edit comes from.

        The embedded one, or else that which the artifact refers to by repository, commit and
        digest: it is pulled from there and is the very same one, or an error.

        Args:
            **where: `token`, `cache_dir`, `local_files_only`, `force_download` and `endpoint`, see
                `salve_plugin.store.source.Where`; the artifact itself says which commit.

        Raises:
            InputError: if the edit comes from no dictionary, the artifact does not say where it
                is, or an argument is unknown, ill-formed or says that, too.
            ArtifactError: if another dictionary lies there, or it is damaged.
            HubError: if the Hub refuses or cannot be reached and the cache does not help.
        """
        if self.dictionary is not None:
            return self.dictionary
        digest, at = self.edit.dictionary_digest, self.dictionary_at
        if digest is None:
            raise InputError("the edit does not come from a dictionary")
        if at is None:
            raise InputError(
                f"the artifact does not say where its dictionary {digest} is; get it from the "
                "artifact's author and read it with Dictionary.from_pretrained. Authors: push the "
                "dictionary before the artifact, or embed it with embed_dictionary=True"
            )
        told = [name for name in ("revision", "subfolder") if where.get(name) is not None]
        if told:  # another one would not be the edit's
            raise InputError(
                f"{told[0]} is given, but the artifact says where its dictionary is: {at}; leave "
                "it out"
            )
        # Not `open_source`: what an artifact says is never a path.
        where = {**where, "revision": at.commit, "subfolder": at.subfolder}
        place = open_repository(at.repo_id, Dictionary.format.manifest, **where)
        dictionary = Dictionary.read_from(place)
        if dictionary.digest != digest:
            raise ArtifactError(
                f"the dictionary at {at} is {dictionary.digest}, the artifact's is {digest}: the "
                "artifact refers to the wrong place; ask its author"
            )
        return dictionary

    def audit(self, base: StateSource | None, edited: StateSource) -> Audit:
        """Say whether a model is the edit's base with exactly this edit and nothing else.

        Every tensor of the two is compared bit for bit; `str()` of the answer is the verdict in one
        sentence, and the answer is true in a condition if it is proven.

        Args:
            base: a model (edits on it do not count), a state dict, or the path of one:
                `.safetensors`, what `torch.save` wrote, or a folder with `model.safetensors`. None
                to put the artifact's pristine rows back into the edited model and compare the
                digest over everything with the one that the edit knows of its base: that proves as
                much, but cannot name the tensors that differ.
            edited: the same of the model in question, with all that is on it. A copy in another
                precision is compared as such, and the verdict says so.

        Raises:
            InputError: if the base is None and the artifact has no pristine rows, or something is
                no state dict.
            ReadError: if a file cannot be read.
            UnsupportedModelError: if a tensor has no plain elements: quantized, sparse, or on the
                meta device.
        """
        return audit([self.edit], self.pristine, base, edited)

    def revert_(self, model: nn.Module) -> None:
        """Undo the edit bit for bit.

        Where the edit was applied in this process the model itself knows how. In a model that was
        saved in edited form and loaded again, the pristine rows are put back, provided that its
        rows are exactly what the edit makes of them. Only the parameters that the edit touches are
        compared, as wholes; `edit.match(model)` says of the result whether the rest is the base's.

        Raises:
            EditStateError: if the edit is not in the model, its weights were changed since, or
                the artifact has no pristine rows where they are needed.
            BaseMismatchError: if the touched parameters would not be those of the edit's base.
        """
        # Where the model knows of the edit, it can be taken back among others; put back are the
        # rows of one that is alone.
        if any(entry.edit == self.edit for entry in status(model).applied):
            self.edit.revert_(model)
        elif self.pristine is None:
            raise EditStateError(
                "the model does not know of the edit (was it loaded in edited form?) and the "
                "artifact has no pristine rows; save it with EditArtifact.of(model, edit), or load "
                "the base model's weights again"
            )
        else:
            restore_rows_(model, self.edit, self.pristine)
