"""The edit artifact: an edit that can be mailed, checked, applied elsewhere and undone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from salve_plugin.control.application import pristine_rows, restore_rows_, status
from salve_plugin.control.edit import Edit
from salve_plugin.errors import ArtifactError, EditStateError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.share import reading
from salve_plugin.share.canonical import Json
from salve_plugin.share.card import CARD_FILE, new_card, updated_card
from salve_plugin.share.contents import Contents, manifest_of, tensors_of
from salve_plugin.share.folder import folder_reader, replace_files, sha256_bytes
from salve_plugin.share.manifest import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    MAX_PICTURE_BYTES,
    PNG_START,
    identity,
    picture_file,
    read_manifest,
    seal,
    write_manifest,
)
from salve_plugin.share.tensor_file import TENSOR_FILE, encode_tensors

MAX_PICTURES = 64


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

    def __post_init__(self) -> None:
        """Check that the parts belong together and the pictures are pictures.

        Raises:
            InputError: naming the part that does not fit.
        """
        super().__post_init__()
        _check_pictures(self.pictures or {})

    @classmethod
    def of(cls, hooked: HookedModel | nn.Module, edit: Edit, **parts: Any) -> "EditArtifact":
        """Return an artifact that carries the pristine rows, taken from the model.

        The model may have the edit (and others) applied or not.

        Args:
            hooked: the model that the edit was made for.
            edit: the edit.
            **parts: as for the constructor.

        Raises:
            BaseMismatchError: if the model has no such layers.
            InputError: if its weights are not those of the edit's base, or a part does not fit.
        """
        return cls(edit, pristine=pristine_rows(hooked, edit), **parts)

    @cached_property
    def digest(self) -> str:
        """The artifact's identity: the same for the same contents, however they are stored.

        Hex SHA-256 over every tensor and the manifest without `producer`, `format_version`,
        `files` and the digests themselves.
        """
        return identity(manifest_of(self), tensors_of(self))

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
        config, files = self._packed()
        previous = _previous_manifest(path)
        card = _card(path, config, previous)
        obsolete = _own_files(path, previous) - set(files)
        replace_files(path, {CARD_FILE: card, **files}, obsolete=obsolete)
        return path

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "EditArtifact":
        """Read an artifact from a local folder, everything checked before anything is used.

        Raises:
            ArtifactError: if there is no such folder (repository names are not supported in this
                version), or the artifact is damaged, changed, incomplete, too large, of a newer
                format, or contradicts itself.
        """
        _, parts = reading.read_artifact(folder_reader(reading.open_folder(folder)))
        return cls(**parts)

    @classmethod
    def verify(cls, folder: str | Path) -> str:
        """Check everything that reading checks and return the artifact's digest.

        Raises:
            ArtifactError: as `from_pretrained`.
        """
        config, _ = reading.read_artifact(folder_reader(reading.open_folder(folder)))
        return str(config["digest"])

    @staticmethod
    def inspect(folder: str | Path) -> Json:
        """Return what an artifact says about itself; see `salve_plugin.share.reading.inspect`."""
        return reading.inspect(folder)

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

    def _packed(self) -> tuple[Json, dict[str, bytes]]:
        """Return the manifest's fields and the bytes of every file but the card.

        The manifest is the last file: until it is in place, the digests in an older one expose a
        mixture of old and new.
        """
        tensors = tensors_of(self)
        pictures = sorted((self.pictures or {}).items())
        files = {
            TENSOR_FILE: encode_tensors(tensors),
            **{picture_file(name): data for name, data in pictures},
        }
        config = seal(manifest_of(self), tensors, files)
        files[CONFIG_FILE] = write_manifest(config)
        # Whatever is written can be read: the reader's own checks are the writer's.
        try:
            reading.read_artifact(lambda name, _: files[name])
        except ArtifactError as error:
            raise InputError(f"the artifact could not be read back: {error}") from error
        return config, files


def _check_pictures(pictures: Mapping[str, bytes]) -> None:
    if len(pictures) > MAX_PICTURES:
        raise InputError(
            f"{len(pictures)} pictures are more than the {MAX_PICTURES} of an artifact"
        )
    for name, data in pictures.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
            raise InputError(
                f"picture name {name!r} is not a plain name; use up to 64 lower-case letters, "
                "digits, '_' and '-', without '.png'"
            )
        if not data.startswith(PNG_START) or len(data) > MAX_PICTURE_BYTES:
            raise InputError(
                f"picture '{name}' is not a PNG file of at most {MAX_PICTURE_BYTES} bytes"
            )


def _previous_manifest(folder: Path) -> Json | None:
    """Return the manifest of an artifact that is in the folder already, if it is a valid one."""
    try:
        return read_manifest(folder_reader(folder)(CONFIG_FILE, MAX_CONFIG_BYTES))
    except ArtifactError:
        return None


def _card(folder: Path, config: Json, previous: Json | None) -> bytes:
    existing = reading.read_card(folder)
    return new_card(config) if existing is None else updated_card(existing, config, previous)


def _own_files(folder: Path, previous: Json | None) -> set[str]:
    """Return the files of the artifact in the folder that are as it wrote them."""
    entries = {} if previous is None else previous["files"]
    assert isinstance(entries, dict)
    read, own = folder_reader(folder), set()
    for name, entry in entries.items():
        try:
            if sha256_bytes(read(name, int(entry["size"]))) == entry["sha256"]:
                own.add(name)
        except ArtifactError:
            continue
    return own
