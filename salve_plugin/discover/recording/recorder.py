"""The write side of a recording: rows become shards, shards count once the index lists them."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from salve_plugin.discover.recording.loader import ImagesDigest, LabelledImages
from salve_plugin.discover.recording.shards import INDEX_FILE, Index, Shard
from salve_plugin.errors import InputError
from salve_plugin.store.files import write_atomically

SHARD_BYTES = 128 * 2**20
"""A shard ends with the batch that reaches this many bytes of activations, or its limit of rows."""


class Recorder:
    """The write side of a folder of shards: rows are held until they make a shard."""

    def __init__(self, folder: Path, index: Index, shard_rows: int) -> None:
        """Continue the recording in `folder`, or start one with the empty `index`."""
        self.folder = folder
        self.index = _continued(folder, index)
        self.recorded = self.index.batches
        self._shard_rows = shard_rows
        self._labels, self._images = hashlib.sha256(), ImagesDigest()
        self._largest_label = -1
        self._n_images = self.index.n_images
        self._start_shard()

    def _start_shard(self) -> None:
        self._rows: list[Tensor] = []
        self._row_labels: list[Tensor] = []
        self._row_images: list[Tensor] = []
        self._batches: list[str] = []
        self._images_in_shard = 0

    def compared(self, batch: LabelledImages) -> str:
        """Note images and labels of the loader's next batch and return the batch's fingerprint.

        Raises:
            InputError: if another batch was recorded in its place.
        """
        self._labels.update(batch.labels.numpy().tobytes())
        self._images.add(batch)
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
        per_image = len(rows) // len(batch.labels)
        images = torch.arange(self._n_images, self._n_images + len(batch.labels))
        self._rows.append(rows)
        self._row_labels.append(batch.labels.repeat_interleave(per_image))
        self._row_images.append(images.repeat_interleave(per_image))
        self._batches.append(fingerprint)
        self._images_in_shard += len(images)
        self._n_images += len(images)
        n_rows = sum(map(len, self._rows))
        if n_rows >= self._shard_rows or n_rows * rows[0].nbytes >= SHARD_BYTES:
            self._write_shard()
            self.index.write(self.folder)

    def finish(self) -> None:
        """Write the last shard and mark the recording as finished."""
        if self._rows:
            self._write_shard()
        self.index = replace(
            self.index,
            finished=True,
            labels_sha256=self._labels.hexdigest(),
            images_sha256=self._images.hexdigest(),
            n_classes=self.index.n_classes or self._largest_label + 1,
        )
        self.index.write(self.folder)

    def _write_shard(self) -> None:
        tensors = {
            "activations": torch.cat(self._rows),
            "labels": torch.cat(self._row_labels),
            "images": torch.cat(self._row_images),
        }
        self._rows.clear()  # the joined copy is enough
        data = save(tensors, metadata={"format": "pt"})
        shard = Shard(
            file=Shard.name(len(self.index.shards)),
            rows=len(tensors["labels"]),
            images=self._images_in_shard,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            batches=tuple(self._batches),
        )
        write_atomically(self.folder / shard.file, data)
        self.index = replace(self.index, shards=(*self.index.shards, shard))
        self._start_shard()


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
    other = [name for name, (before, now) in same.items() if before != now]
    if other:
        raise InputError(
            f"{folder} holds a recording of '{recorded.site.name}' with other "
            f"{' and '.join(other)} than '{index.site.name}' of this model and data; choose "
            "another folder, or delete it"
        )
    return replace(recorded, network_sha256=index.network_sha256)  # of the same weights
