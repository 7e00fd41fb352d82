"""The write side of a recording: rows become shards, shards count once the index lists them."""

import hashlib
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from salve_plugin.discover.recording.labelling import labelling_of, tensor_name
from salve_plugin.discover.recording.loader import ImagesDigest, LabelledImages
from salve_plugin.discover.recording.shards import INDEX_FILE, PARTIAL, Index, Shard
from salve_plugin.errors import InputError, ReadError
from salve_plugin.store.files import write_atomically

SHARD_BYTES = 128 * 2**20
"""A shard ends with the batch that reaches this many bytes of activations, or its limit of rows."""
KEEP_SECONDS = 30.0
"""After so long, rows that make no shard yet are written too: a kill costs at most their time."""


class _Held(NamedTuple):
    """Rows in memory, those of one or more batches."""

    rows: Tensor
    labels: Tensor
    images: Tensor
    batches: tuple[str, ...]
    n_images: int


class Recorder:
    """The write side of a folder of shards: rows are held until they make a shard.

    From time to time they are written before, as a partial shard, which lasts until the whole one
    is there: in the end the files are the same, however often a recording was interrupted.
    """

    def __init__(self, folder: Path, index: Index, shard_rows: int) -> None:
        """Continue the recording in `folder`, or start one with the empty `index`."""
        self.folder = folder
        self.index = _continued(folder, index)
        self.recorded = self.index.batches
        self._shard_rows = shard_rows
        self._labels, self._images = hashlib.sha256(), ImagesDigest()
        self._largest_label = -1
        # One list of whole entries: an interrupt can come between any two statements.
        self._held: list[_Held] = []
        self._listed = self.index.shards
        if self._listed and PARTIAL.fullmatch(self._listed[-1].file):
            # Its rows are held again, as if they had just been computed. On the disk the index
            # lists it until a whole shard takes its place.
            self._held.append(_read_partial(folder, self._listed[-1]))
            self.index = replace(self.index, shards=self._listed[:-1])
        self._kept_at = time.monotonic()

    def compared(self, batch: LabelledImages) -> str:
        """Note images and labels of the loader's next batch and return the batch's fingerprint.

        Raises:
            InputError: if another batch was recorded in its place.
        """
        self._labels.update(batch.labels.numpy().tobytes())
        self._images.add(batch)
        if self.index.labelling is None:
            self.index = replace(self.index, labelling=labelling_of(batch.labels))
        self._largest_label = max(self._largest_label, int(batch.labels.max()))
        fingerprint = batch.fingerprint()
        known = self.recorded
        if batch.number < len(known) and known[batch.number] != fingerprint:
            raise InputError(self.changed(f"another batch {batch.number}", "the one recorded"))
        return fingerprint

    def changed(self, now: str, then: str) -> str:
        """Return the message for a loader that is not the one that was recorded."""
        return (
            f"the loader yields {now}, not {then} in {self.folder}: its order, batch size, images "
            "or labels changed. Use shuffle=False, the same batch size and no random "
            "augmentation, or record into another folder"
        )

    def add(
        self, rows: Float[Tensor, "rows width"], batch: LabelledImages, fingerprint: str
    ) -> None:
        """Append the rows of one batch; write the shard if it is full."""
        dtype = str(rows.dtype).removeprefix("torch.")
        if self.index.dtype not in (None, dtype):
            raise InputError(
                f"batch {batch.number} gives {dtype} activations, those before {self.index.dtype}; "
                "run the model in one precision"
            )
        self.index = replace(self.index, dtype=dtype)
        n_images = len(batch.labels)
        first = self.index.n_images + sum(held.n_images for held in self._held)
        images = torch.arange(first, first + n_images)
        per_image = len(rows) // n_images
        labels = batch.labels.repeat_interleave(per_image, 0)
        images = images.repeat_interleave(per_image)
        self._held.append(_Held(rows, labels, images, (fingerprint,), n_images))
        if self._is_full():
            self._write_shard()
            self._write_index(self.index)
        elif time.monotonic() - self._kept_at >= KEEP_SECONDS:
            self.keep()

    def keep(self) -> int:
        """Write what makes no shard yet, so that it need not be computed again.

        Returns:
            The number of images that are on disk.
        """
        if self._is_full():
            # An interrupt came before it was written: as a partial shard it would get one more
            # batch, and the shards that follow would be other ones than without the interrupt.
            self._write_shard()
        shards = self.index.shards
        if self._held:
            batches = sum(len(held.batches) for held in self._held)
            name = Shard.partial_name(len(shards), batches)
            # A partial shard of this name has these very batches: it need not be written again.
            known = bool(self._listed) and self._listed[-1].file == name
            shards = (*shards, self._listed[-1] if known else self._written(name))
        index = replace(self.index, shards=shards)
        if index.shards != self._listed:
            self._write_index(index)
        return index.n_images

    def finish(self) -> None:
        """Write the last shard and mark the recording as finished."""
        if self._held:
            self._write_shard()
        self.index = replace(
            self.index,
            finished=True,
            labels_sha256=self._labels.hexdigest(),
            images_sha256=self._images.hexdigest(),
            **self._classes(),
        )
        self._write_index(self.index)

    def _classes(self) -> dict[str, Any]:
        """Return what the finished index says of classes: with targets there are none."""
        if self.index.labelling == "target":
            return {"classes": None, "n_classes": 0}
        return {"n_classes": self.index.n_classes or self._largest_label + 1}

    def _write_index(self, index: Index) -> None:
        index.write(self.folder)
        self._listed = index.shards
        self._kept_at = time.monotonic()
        # In this order: a partial shard may go only once no index on the disk lists it.
        _remove_partials(self.folder, index)

    def _is_full(self) -> bool:
        n_rows = sum(len(held.rows) for held in self._held)
        n_bytes = sum(held.rows.nbytes for held in self._held)
        return n_rows >= self._shard_rows or n_bytes >= SHARD_BYTES

    def _write_shard(self) -> None:
        shard = self._written(Shard.name(len(self.index.shards)))
        # Interrupted between these two, rows would be in the index and held again.
        self.index, self._held = replace(self.index, shards=(*self.index.shards, shard)), []

    def _written(self, name: str) -> Shard:
        """Write all held rows to a file; they stay held, joined."""
        rows, labels, images, batches, counts = zip(*self._held, strict=True)
        held = _Held(
            torch.cat(rows), torch.cat(labels), torch.cat(images), sum(batches, ()), sum(counts)
        )
        self._held = [held]
        del rows  # the joined copy is enough
        given = tensor_name(labelling_of(held.labels))
        tensors = {"activations": held.rows, given: held.labels, "images": held.images}
        # To bytes and not to a file: what is hashed is what is written, as a whole or not at all.
        data = save(tensors, metadata={"format": "pt"})
        shard = Shard(
            file=name,
            rows=len(held.rows),
            images=held.n_images,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            batches=held.batches,
        )
        write_atomically(self.folder / shard.file, data)
        return shard


def _read_partial(folder: Path, shard: Shard) -> _Held:
    try:
        data = (folder / shard.file).read_bytes()
    except OSError as error:
        raise ReadError(f"cannot read {folder / shard.file}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise ReadError(
            f"shard {folder / shard.file} is not what was recorded: its SHA-256 differs from the "
            "index; restore it, or delete the folder and record again"
        )
    tensors = load(data)
    given = "targets" if "targets" in tensors else "labels"
    rows, labels, images = (tensors[name] for name in ("activations", given, "images"))
    return _Held(rows, labels, images, shard.batches, shard.images)


def _remove_partials(folder: Path, index: Index) -> None:
    """Remove partial shards that the index does not list: a whole or a longer one replaced them."""
    listed = {shard.file for shard in index.shards}
    for path in folder.glob("shard-*.safetensors"):
        if PARTIAL.fullmatch(path.name) and path.name not in listed:
            with suppress(OSError):
                path.unlink()


def _continued(folder: Path, index: Index) -> Index:
    """Return the index in `folder` if it belongs to the same recording, else the empty one."""
    if not (folder / INDEX_FILE).exists():
        return index
    recorded = Index.read(folder)
    same = {
        "site": (recorded.site, index.site),
        "model weights": (recorded.model_sha256, index.model_sha256),
        "class names": (recorded.classes, index.classes),
    }
    if recorded.labelling == "target" and recorded.finished:
        del same["class names"]  # a regression has none, whatever the data set says
    other = [name for name, (before, now) in same.items() if before != now]
    if other:
        raise InputError(
            f"{folder} holds a recording of '{recorded.site.name}' with other "
            f"{' and '.join(other)} than '{index.site.name}' of this model and data; choose "
            "another folder, or delete it"
        )
    return replace(recorded, network_sha256=index.network_sha256)  # of the same weights
