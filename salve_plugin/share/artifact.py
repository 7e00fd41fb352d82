"""The edit artifact: an edit that can be mailed, checked, applied elsewhere and undone."""

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from salve_plugin.control.application import pristine_rows, restore_rows_
from salve_plugin.control.applied_edits import status
from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import EditStateError
from salve_plugin.hooks import HookedModel
from salve_plugin.share import reading
from salve_plugin.share.canonical import Json
from salve_plugin.share.contents import Contents, manifest_of, tensors_of
from salve_plugin.share.dictionaries import dictionary_of
from salve_plugin.share.difference import Difference, difference
from salve_plugin.share.existing import ExistingFolder
from salve_plugin.share.folder import replace_files
from salve_plugin.share.hub.access import Access, Token
from salve_plugin.share.hub.address import Origin
from salve_plugin.share.hub.push import Pushed, Target, push
from salve_plugin.share.manifest import CONFIG_FILE, identity
from salve_plugin.share.pictures import MAX_PICTURES, check_pictures
from salve_plugin.share.plots import ALPHA_CRIT, alpha_crit_picture
from salve_plugin.share.sources import PathLike, Where, open_source
from salve_plugin.share.writing import planned


@dataclass(frozen=True, eq=False)
class EditArtifact(Contents):
    """An edit with its evidence, as a folder that nobody can change unnoticed.

    The folder holds `edit_config.json` (what was edited, in which model, with what effect; sealed
    by digests), `edit.safetensors` (direction, pristine rows, critical strengths per image), the
    pictures, and `README.md` (the model card). Other files in the folder are left alone.

    Sizes: the recipe alone (direction and manifest) takes a few kilobytes, critical strengths 32
    bytes an image. Pristine rows take as much as the touched weights: all rows of a ResNet-18 head
    are 2 MB (4 % of the checkpoint), one row is 2 kB. Leave them out (`pristine=None`) where only
    the recipe is to travel; it then reverts only in the process that applied it.

    `README.md` is for people. Nothing is read from it, so it has no digest and its text may be
    edited; `inspect` tells whether it was. Saving again never overwrites such text.

    Example:
        >>> artifact = EditArtifact.of(hooked, edit, alpha_crit=crit)   # doctest: +SKIP
        >>> artifact.save_pretrained("espresso")                        # doctest: +SKIP
        >>> EditArtifact.from_pretrained("espresso").edit.apply_(model) # doctest: +SKIP
    """

    origin: Origin | None = field(default=None, init=False, repr=False)
    """Where on the Hub the artifact was read from; None if it was not."""

    def __post_init__(self) -> None:
        """Check that the parts belong together and the pictures are pictures.

        Raises:
            InputError: naming the part that does not fit.
        """
        super().__post_init__()
        check_pictures(self.pictures or {})

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
        artifact = cls(edit, pristine=pristine_rows(hooked, edit), **parts)
        critical, pictures = artifact.alpha_crit, dict(artifact.pictures or {})
        if not plot or critical is None or not len(critical.values):
            return artifact
        if ALPHA_CRIT in pictures or len(pictures) >= MAX_PICTURES:
            return artifact
        named = replace(critical, classes=tuple(artifact.labels) if artifact.labels else None)
        pictures[ALPHA_CRIT] = alpha_crit_picture(named, edit)
        return replace(artifact, pictures=pictures)

    @cached_property
    def digest(self) -> str:
        """The artifact's identity: the same for the same contents, however they are stored.

        Hex SHA-256 over every tensor and the manifest without `producer`, `format_version`,
        `files` and the digests themselves.
        """
        return identity(manifest_of(self), tensors_of(self))

    def diff(self, other: "EditArtifact") -> Difference:
        """Return what differs from another artifact, wherever the two are from.

        The result is false, with the same digest on both sides, or true and readable: `print` it.
        """
        return difference(self, other)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artifact into a folder; the network is never used.

        The same artifact gives the same bytes. Over an older artifact it is all or nothing (see
        `replace_files`); pictures that only the older one had are removed, files that are not the
        artifact's stay. Of an existing `README.md` only the metadata are updated, except that a
        text which is exactly what this library wrote for the older artifact is written anew.

        Returns:
            The folder.

        Raises:
            InputError: if a part has no exact JSON form, the manifest would be too long, or the
                existing `README.md` has unreadable metadata.
            WriteError: if the disk is full or the folder cannot be written; nothing is changed.
        """
        path = Path(folder)
        change = planned(self, ExistingFolder(path))
        replace_files(path, change.files, obsolete=change.obsolete)
        return path

    @classmethod
    def from_pretrained(cls, source: PathLike, **where: Unpack[Where]) -> "EditArtifact":
        """Read an artifact, everything checked before anything is used.

        From the Hub, a revision is resolved to a commit once and all files are that commit's; the
        result's `origin` names it. What was damaged in the client's cache is downloaded again.

        Args:
            source: a local folder, or a Hub repository as "user/name".
            **where: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
                `force_download` and `endpoint`, see `salve_plugin.share.sources.Where`.

        Raises:
            ArtifactError: if there is no artifact, or it is damaged, changed, incomplete, too
                large, of a newer format, or contradicts itself.
            HubError: if the Hub refuses or cannot be reached and the cache does not help.
            InputError: if an argument is ill-formed.
            WriteError: if the client's cache cannot be written.
        """
        place = open_source(source, CONFIG_FILE, **where)
        _, parts = place.use(reading.read_artifact)
        return located(cls(**parts), place.origin)

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
        """Put the artifact on the Hub in one commit, or leave everything there as it was.

        What holds for `save_pretrained` over an older artifact holds here too. Pushing again what
        is there already makes no commit.

        Args:
            repo_id: "user/name"; created if missing (not for a pull request).
            subfolder: of the repository, so that it can hold several artifacts.
            revision: branch to commit to, by default `main`.
            private: whether a new repository is private. If the repository exists and is not what
                was asked for, nothing is pushed.
            token: with write access; by default the one that the user has logged in with.
            commit_message: title of the commit.
            create_pr: make a pull request instead of a commit to the branch.
            tag: name for the commit; a tag is never moved.
            endpoint: address of the Hub, by default the client's (`HF_ENDPOINT`).

        Returns:
            The exact place; its `reference.commit` as `revision` always gets the same bytes.

        Raises:
            HubConflictError: if somebody else committed meanwhile, or the tag is taken.
            HubError: if the Hub refused or cannot be reached; the same call can be made again and
                makes no second commit.
            InputError: if an argument is ill-formed, or as for `save_pretrained`.
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
        return push(target, partial(planned, self), f"Add edit {self.digest[:12]}")

    @classmethod
    def verify(cls, source: PathLike, **where: Unpack[Where]) -> str:
        """Check everything that reading checks and return the artifact's digest.

        An edited model that the artifact lists is checked too: files of a folder by their SHA-256,
        those on the Hub by the Hub's, so that the model is not downloaded.

        Raises:
            SalveError: as `from_pretrained`.
        """
        place = open_source(source, CONFIG_FILE, **where)
        config: dict[str, Any] = place.use(reading.read_artifact)[0]
        reading.check_model(place, config["merged"])
        return str(config["digest"])

    @staticmethod
    def inspect(source: PathLike, **where: Unpack[Where]) -> Json:
        """Return what an artifact says about itself; see `salve_plugin.share.reading.inspect`."""
        return reading.inspect(source, **where)

    def load_dictionary(
        self,
        *,
        token: Token = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
        endpoint: str | None = None,
    ) -> Dictionary:
        """Return the dictionary that the edit comes from.

        The embedded one, or else that which the artifact refers to by repository, commit and
        digest: it is pulled from there and is the very same one, or an error.

        Args:
            token: for a private repository; see `from_pretrained`.
            cache_dir: the Hub client's cache, by default its own.
            local_files_only: never use the network.
            endpoint: address of the Hub, by default the client's (`HF_ENDPOINT`).

        Raises:
            InputError: if the edit comes from no dictionary, or the artifact does not say where it
                is.
            ArtifactError: if another dictionary lies there, or it is damaged.
            HubError: if the Hub refuses or cannot be reached and the cache does not help.
        """
        return dictionary_of(
            self,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            endpoint=endpoint,
        )

    def revert_(self, model: nn.Module) -> None:
        """Undo the edit bit for bit.

        Where the edit was applied in this process the model itself knows how. In a model that was
        saved in edited form and loaded again, the pristine rows are put back, provided that its
        rows are exactly what the edit makes of them.

        Raises:
            EditStateError: if the edit is not in the model, its weights were changed since, or
                the artifact has no pristine rows where they are needed.
            BaseMismatchError: if the result would not be the edit's base.
        """
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


def located(artifact: EditArtifact, origin: Origin | None) -> EditArtifact:
    """Return the artifact, which now remembers where on the Hub it was read from."""
    object.__setattr__(artifact, "origin", origin)
    return artifact
