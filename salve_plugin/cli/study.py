"""A study: what `salve discover` leaves in a folder, and what the other commands start from."""

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from salve_plugin.adapter import Adapter, attach, installed_adapters
from salve_plugin.cli.images import ImageTree
from salve_plugin.cli.output import show_note
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.dictionary_files import DICTIONARY
from salve_plugin.discover.features import Features, profile
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError, ReadError, SalveError, WriteError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import check_one_network, network_digest
from salve_plugin.store.checkpoint import weights_file
from salve_plugin.store.digest import sha256_file
from salve_plugin.store.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

STUDY_FILE = "study.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelSpec:
    """How to build the model again.

    Attributes:
        model: name in its family, e.g. timm's `resnet18.a1_in1k`.
        checkpoint: absolute path of a state dict; None for the family's pretrained weights.
        num_classes: size of the classifier, if not the checkpoint's or the family's own.
        adapter: which installed adapter.
        checkpoint_sha256: of the checkpoint, as it was when it was pinned; None if it was not.
    """

    model: str
    checkpoint: str | None = None
    num_classes: int | None = None
    adapter: str = "timm"
    checkpoint_sha256: str | None = None

    def pinned(self) -> "ModelSpec":
        """Return the spec with the digest of the checkpoint as it is now."""
        return replace(self, checkpoint_sha256=self._present())

    @property
    def is_as_pinned(self) -> bool:
        """Whether the checkpoint is the file that it was; false if that is not known."""
        return self.checkpoint_sha256 is not None and self.checkpoint_sha256 == self._present()

    def _present(self) -> str | None:
        file = None if self.checkpoint is None else weights_file(Path(self.checkpoint))
        return sha256_file(file) if file is not None and file.is_file() else None

    def _adapter(self) -> Adapter:
        adapters = installed_adapters()
        if self.adapter not in adapters:
            raise InputError(
                f"no adapter '{self.adapter}' is installed; there are {sorted(adapters)}. For timm "
                "models: pip install 'salve-plugin[timm]'"
            )
        return adapters[self.adapter]

    def open(self) -> "OpenModel":
        """Build the model, load its weights and attach it.

        Raises:
            InputError: if no such adapter is installed.
            SalveError: what the adapter raises, if the model cannot be built or attached.
        """
        adapter = self._adapter()
        model = adapter.create(self.model, checkpoint=self.checkpoint, num_classes=self.num_classes)
        return OpenModel(attach(model), adapter.transform(model), adapter.class_names(model))


@dataclass(frozen=True)
class OpenModel:
    """A hooked model, its preprocessing, and the names that its classes are known by."""

    hooked: HookedModel
    transform: "Callable[[Image], Tensor]"
    class_names: Sequence[Sequence[str]] | None

    @property
    def n_classes(self) -> int:
        """Number of classes that the classifier tells apart."""
        return max(2, len(self.hooked.unembed(partial=True)[1]))  # one logit has two sides

    def images(
        self, folder: Path, *, labels: Sequence[str] | None = None, left_out: Collection[str] = ()
    ) -> ImageTree:
        """Return the labelled images of a folder for this model; see `ImageTree`.

        Args:
            folder: with one subfolder a class.
            labels: further names of the model's classes, by index: then some of them will do.
            left_out: files and empty subfolders to pass over.
        """
        names = self.class_names
        if labels is not None and len(labels) == self.n_classes:
            # Added to the model's own names, not in their place: folders may be called by either.
            known = names or [()] * len(labels)
            names = [(*own, label) for own, label in zip(known, labels, strict=True)]
        return ImageTree(folder, self.transform, names=names, n=self.n_classes, left_out=left_out)


@dataclass(frozen=True)
class Study:
    """A folder with recorded activations and a dictionary.

    Attributes:
        folder: of the study.
        spec: how to build its model.
        data: absolute path of the images that were recorded.
        left_out: what below it was passed over, see `unusable`.
    """

    folder: Path
    spec: ModelSpec
    data: str
    left_out: tuple[str, ...] = ()

    def save(self) -> None:
        """Write `study.json`.

        Raises:
            WriteError: if the folder cannot be written.
        """
        fields = {
            "format_version": FORMAT_VERSION, "source": asdict(self.spec), "data": self.data,
            "left_out": list(self.left_out),
        }  # fmt: skip
        write_atomically(
            self.folder / STUDY_FILE, json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n"
        )

    def replaced(self, site: str, asked: Mapping[str, Any], *, force: bool) -> list[str]:
        """Return in what a study that lies in the folder is another one.

        Args:
            site: to record.
            asked: arguments of `fit` by name; None stands for its default.
            force: whether another study may be replaced.

        Raises:
            InputError: naming what is different, if it may not.
        """
        different = self._different(site, asked)
        if different and not force:
            raise InputError(
                f"{self.folder} holds a study with other {', '.join(different)}, which would be "
                "overwritten; choose another --out, or add --force"
            )
        return different

    def remove_other(self, different: Sequence[str]) -> None:
        """Remove what another study in the folder has recorded and begun; see `replaced`."""
        if different:
            shutil.rmtree(self.checkpoint_folder, ignore_errors=True)
        # A recording knows no learner: for another dictionary of the same it is used again.
        if {"model", "data", "site"} & set(different):
            shutil.rmtree(self.activations_folder, ignore_errors=True)

    def _different(self, site: str, asked: Mapping[str, Any]) -> list[str]:
        different = []
        if (self.folder / STUDY_FILE).exists():
            before = Study.load(self.folder)
            # A checkpoint that was not pinned is compared by its path alone.
            pinned = before.spec.checkpoint_sha256 is not None
            spec = self.spec if pinned else replace(self.spec, checkpoint_sha256=None)
            different += ["model"] if before.spec != spec else []
            same_data = (before.data, before.left_out) == (self.data, self.left_out)
            different += [] if same_data else ["data"]
        if not (self.dictionary_folder / DICTIONARY.manifest).exists():
            return different
        try:
            dictionary = Dictionary.from_pretrained(self.dictionary_folder)
        except SalveError:
            return [*different, "dictionary (damaged, or somebody else's)"]
        different += ["site"] if dictionary.site.name != site else []
        return different + [
            name
            for name, value in asked.items()
            # None stands for what `fit` would choose, which nobody knows yet; but no target is a
            # choice.
            if (value is not None or name == "target_l0") and dictionary.meta.get(name) != value
        ]

    @classmethod
    def load(cls, folder: Path) -> "Study":
        """Read `study.json`.

        Raises:
            ReadError: if the folder is no study, or one of a newer version.
        """
        path = folder / STUDY_FILE
        if not path.is_file():
            raise ReadError(
                f"{folder} is not a study: it has no {STUDY_FILE}; give the folder that "
                "`salve discover` wrote to its --out"
            )
        try:
            fields = json.loads(path.read_text())
            version = fields["format_version"]
            spec, data = ModelSpec(**fields["source"]), str(fields["data"])
            study = cls(folder, spec, data, tuple(map(str, fields.get("left_out", ()))))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ReadError(
                f"{folder} is not a study ({type(error).__name__}: {error}); make one with "
                f"`salve discover --model NAME --data FOLDER --out {folder}`"
            ) from error
        if version != FORMAT_VERSION:
            raise ReadError(
                f"{path} has format version {version!r}; this version of salve_plugin reads "
                f"{FORMAT_VERSION}: update it (`pip install -U salve-plugin`), or make the study "
                "again with `salve discover`"
            )
        return study

    @property
    def activations_folder(self) -> Path:
        """Where the recording is."""
        return self.folder / "activations"

    @property
    def dictionary_folder(self) -> Path:
        """Where the dictionary is."""
        return self.folder / "dictionary"

    @property
    def checkpoint_folder(self) -> Path:
        """Where a dictionary that is being learned is kept."""
        return self.folder / "checkpoint"

    def parts(self) -> tuple[Activations, Dictionary, Features]:
        """Return recording, dictionary and the dictionary's profile.

        Raises:
            SalveError: if a file is missing or damaged.
        """
        acts = Activations.load(self.activations_folder)
        dictionary = Dictionary.from_pretrained(self.dictionary_folder)
        return acts, dictionary, profile(dictionary, acts)

    def open(self, acts: Activations) -> OpenModel:
        """Return the model, which must still be the one that was recorded, its classifier excepted.

        That the file of its checkpoint is another one all the same is said.

        Args:
            acts: the study's recording.

        Raises:
            BaseMismatchError: if it is another one, because its checkpoint was overwritten, say.
            SalveError: as for `ModelSpec.open`.
        """
        opened = self.spec.open()
        remedy = (
            f"put back the weights of {self.spec.checkpoint or self.spec.model}, or make a "
            "study of the new ones: `salve discover` with another --out"
        )
        networks = {
            f"the recording in {self.folder}": acts.network_sha256,
            "the model": network_digest(opened.hooked),
        }
        check_one_network(networks, remedy=remedy)
        if self.spec.checkpoint_sha256 is not None and not self.spec.is_as_pinned:
            show_note(
                f"{self.spec.checkpoint} is not the file that was recorded: its classifier may be "
                "another one, all else in it is the same"
            )
        return opened

    def check_checkpoint(self, acts: Activations) -> None:
        """Refuse a checkpoint that is not the one recorded; one that is not there is not missed.

        Raises:
            SalveError: as for `open`.
        """
        # A digest of the file first: the model is built only where that is another one.
        checkpoint = self.spec.checkpoint
        if checkpoint is not None and Path(checkpoint).exists() and not self.spec.is_as_pinned:
            self.open(acts)


def made_folder(path: Path) -> Path:
    """Return the folder, made if needed.

    Raises:
        WriteError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return path
