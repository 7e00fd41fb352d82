"""The files of a recording: numbered safetensors shards and the index that makes them count."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salve_plugin.discover.recording.labelling import Labelling, check_labelling
from salve_plugin.errors import InputError, ReadError
from salve_plugin.site import Site
from salve_plugin.store.files import write_atomically

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
PART_SHARD = re.compile(r"part-\d{5}/shard-\d{5}\.safetensors")
"""Names of shards that another process recorded."""

PARTIAL = re.compile(r"shard-\d{5}\.partial-\d+\.safetensors")
"""Names of the last shard of an unfinished recording, if it is not whole yet."""

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Shard:
    """One finished file of a recording.

    It holds `activations` (rows, width) in the network's own dtype, `labels` (rows,) and `images`
    (rows,), both int64; `images` counts the images of the whole recording.

    Attributes:
        file: name inside the folder.
        rows: number of rows.
        images: number of images.
        size: bytes of the file.
        sha256: of the file.
        batches: fingerprint of each batch of the loader that went into it.
        images_from: is added to the `images` of the file; not zero in joined recordings only.
    """

    file: str
    rows: int
    images: int
    size: int
    sha256: str
    batches: tuple[str, ...]
    images_from: int = 0

    @staticmethod
    def name(number: int) -> str:
        """Return the file name of the shard of that number."""
        return f"shard-{number:05d}.safetensors"

    @staticmethod
    def partial_name(number: int, batches: int) -> str:
        """Return the file name of the shard of that number while it has so many batches."""
        return f"shard-{number:05d}.partial-{batches}.safetensors"


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds; a shard that the index does not list does not count.

    Attributes:
        site: where the activations were read.
        model: the hooked model's description.
        model_sha256: of every parameter and buffer of the model.
        classes: class names by label, if known.
        n_classes: number of classes; None until finished unless it was known beforehand.
        dtype: of the stored activations; None before the first shard.
        shards: the finished shards, in order.
        finished: whether the loader was read to its end.
        labels_sha256: of all images' labels (int64, in order), once finished.
        network_sha256: of the model's body, see `network_digest`; None if it was not noted.
        images_sha256: of the images, see `ImagesDigest`; None if it was not noted.
        labelling: what is known of an image; None before the first.
    """

    site: Site
    model: Mapping[str, object]
    model_sha256: str
    classes: tuple[str, ...] | None
    n_classes: int | None
    dtype: str | None = None
    shards: tuple[Shard, ...] = ()
    finished: bool = False
    labels_sha256: str | None = None
    network_sha256: str | None = None
    images_sha256: str | None = None
    labelling: Labelling | None = None

    @property
    def n_rows(self) -> int:
        """Rows of all finished shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def n_images(self) -> int:
        """Images of all finished shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def batches(self) -> tuple[str, ...]:
        """Fingerprints of all batches of the loader that are in finished shards."""
        return tuple(batch for shard in self.shards for batch in shard.batches)

    def write(self, folder: Path) -> None:
        """Replace the folder's index by this one, atomically.

        Raises:
            WriteError: if that is impossible; the old index stays.
        """
        fields = {
            "format_version": FORMAT_VERSION,
            "site": self.site.to_json(),
            "model": dict(self.model),
            "model_sha256": self.model_sha256,
            "classes": None if self.classes is None else list(self.classes),
            "n_classes": self.n_classes,
            "dtype": self.dtype,
            "shards": [asdict(shard) for shard in self.shards],
            "finished": self.finished,
            "labels_sha256": self.labels_sha256,
            "network_sha256": self.network_sha256,
            "images_sha256": self.images_sha256,
            "labelling": self.labelling,
        }
        # The index is replaced after its shard is on disk: whenever the process dies, the folder is
        # a whole recording of fewer batches.
        text = json.dumps(fields, sort_keys=True, indent=1, allow_nan=False)
        write_atomically(folder / INDEX_FILE, text.encode() + b"\n")

    @classmethod
    def is_finished(cls, folder: Path) -> bool:
        """Tell whether a folder holds a finished recording."""
        try:
            return (folder / INDEX_FILE).is_file() and cls.read(folder).finished
        except ReadError:
            return False

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read a folder's index and check that every listed shard is there in full length.

        Raises:
            ReadError: if the index or a shard is missing, damaged or truncated; it is named.
        """
        path = folder / INDEX_FILE
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise ReadError(f"no recording in {folder}: {INDEX_FILE} is missing") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ReadError(f"cannot read {path}: {error}; record again") from error
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise ReadError(
                f"{path} has format version {version!r}; this version of salve_plugin reads "
                f"{FORMAT_VERSION}: update salve_plugin or record again"
            )
        try:
            index = cls._from_fields(fields)
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            raise ReadError(f"{path} is damaged ({error!r}); record again") from error
        index._check_files(folder)
        return index

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "Index":
        shards = tuple(
            Shard(**{**shard, "batches": tuple(shard["batches"])}) for shard in fields["shards"]
        )
        for number, shard in enumerate(shards):
            counts = (shard.rows, shard.images, shard.size, shard.images_from)
            # Names are made, never taken as paths: an index from elsewhere must not point out of
            # its folder.
            partial = Shard.partial_name(number, len(shard.batches))
            last = number == len(shards) - 1 and not fields["finished"]
            own = (
                shard.file == Shard.name(number)
                or PART_SHARD.fullmatch(shard.file)
                or (last and shard.file == partial)
            )
            if not own or not all(type(n) is int and n >= 0 for n in counts):
                raise TypeError(f"bad entry for shard {number}: {shard.file!r}, {counts}")
        if shards and fields["dtype"] not in DTYPES:
            raise TypeError(f"unknown dtype {fields['dtype']!r}")
        check_labelling(fields.get("labelling"))
        if fields["finished"] and type(fields["n_classes"]) is not int:
            raise TypeError(f"number of classes is {fields['n_classes']!r}")
        return cls(
            site=Site.from_json(fields["site"]),
            model=dict(fields["model"]),
            model_sha256=fields["model_sha256"],
            classes=None if fields["classes"] is None else tuple(fields["classes"]),
            n_classes=fields["n_classes"],
            dtype=fields["dtype"],
            shards=shards,
            finished=fields["finished"],
            labels_sha256=fields["labels_sha256"],
            network_sha256=fields.get("network_sha256"),
            images_sha256=fields.get("images_sha256"),
            # Recordings were of classes before they could be of anything else.
            labelling=fields.get("labelling") or ("class" if shards else None),
        )

    def _check_files(self, folder: Path) -> None:
        for shard in self.shards:
            path = folder / shard.file
            # Lengths alone, which costs no reading: digests are for whoever asks for them.
            size = path.stat().st_size if path.is_file() else None
            if size != shard.size:
                state = "is missing" if size is None else f"has {size} bytes"
                raise ReadError(
                    f"shard {path} {state}, the index says {shard.size} bytes; restore it, or "
                    "delete the folder and record again"
                )
