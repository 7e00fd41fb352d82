"""A finished recording of activations, read from disk in pieces."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float64, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salve_plugin.discover.recording.labelling import Labelling, indices_in, tensor_name
from salve_plugin.discover.recording.shards import INDEX_FILE, Index, Shard
from salve_plugin.errors import InputError, ReadError
from salve_plugin.faces.one_line import shortened
from salve_plugin.integers import whole
from salve_plugin.site import Site
from salve_plugin.store.digest import sha256_file
from salve_plugin.store.files import usable

BLOCK_ROWS = 1024
"""Rows that lie together on disk and are read together."""

WINDOW_ROWS = 65536
"""Rows that are in memory at once while shuffling, if they fit into WINDOW_BYTES."""

WINDOW_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of a recording.

    Attributes:
        x: activations (rows, width), float32.
        annotation: what the loader said of each row's image: its class index (rows,), int64; which
            classes it belongs to (rows, classes), uint8; or its target (rows,), float64.
        images: which image of the recording each row comes from (rows,), from 0.
    """

    x: Float[Tensor, "rows width"]
    annotation: Tensor
    images: Int[Tensor, " rows"]

    @property
    def labels(self) -> Int[Tensor, " rows"]:
        """Class index of each row's image.

        Raises:
            InputError: if images have several labels, or targets.
        """
        return indices_in(self.annotation)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> "Batch":
        """Return the named rows."""
        return Batch(self.x[rows], self.annotation[rows], self.images[rows])

    @classmethod
    def joined(cls, parts: "list[Batch]") -> "Batch":
        """Return the rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.x for part in parts]),
            torch.cat([part.annotation for part in parts]),
            torch.cat([part.images for part in parts]),
        )


class Activations:
    """The activations of one site for every image of a data set, on disk.

    Attributes:
        folder: where the shards and the index are.
        site: where in the model they were read.
        classes: class names by label; None if the data set has none.
        description: of the model that computed them.
        model_sha256: of that model's parameters and buffers, as it was, edits included.
        network_sha256: the same but for its classifier, which does not decide what it reads: what
            is computed from the recording is compared by it. None if it is not known.
        labels_sha256: of all images' labels in order.
        images_sha256: of the images in order, by the shape, the type and 1024 evenly spaced values
            of each; None if it was not noted, as where several processes recorded.
        n_rows: number of rows; with tokens or maps there are several for each image.
        n_images: number of images.
        labelling: what is known of an image: its "class"; for each class whether it belongs to it
            ("multi-hot"); or a regression's "target".
        n_classes: number of classes; some may have no image. 0 with targets.
        width: number of features D.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        """Wrap a folder whose index has been read: use `record` or `Activations.load`."""
        if not index.finished or index.n_classes is None:
            raise ReadError(
                f"the recording in {folder} was interrupted after {index.n_images} images; call "
                "record() with the same model, data and folder to complete it"
            )
        self.folder = folder
        self.site: Site = index.site
        self.classes = index.classes
        self.description: Mapping[str, object] = index.model
        self.model_sha256 = index.model_sha256
        self.network_sha256 = index.network_sha256
        self.labels_sha256 = index.labels_sha256
        self.images_sha256 = index.images_sha256
        self.n_rows = index.n_rows
        self.n_images = index.n_images
        self.n_classes = index.n_classes
        self.labelling: Labelling = index.labelling or "class"
        self.width = index.site.width
        self._shards = index.shards
        self._index = _mark(folder)
        starts = accumulate((shard.images for shard in index.shards), initial=0)
        self._first = {shard.file: n for shard, n in zip(index.shards, starts, strict=False)}

    def __repr__(self) -> str:
        """Say what was recorded and where."""
        classes = f"{self.n_classes} classes" if self.n_classes else "a target each"
        several = ", several an image" if self.labelling == "multi-hot" else ""
        return shortened(
            f"Activations({self.n_rows} rows x {self.width} of '{self.site.name}', "
            f"{self.n_images} images, {classes}{several}, in {self.folder})"
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, verify: bool = False) -> "Activations":
        """Open the finished recording in `folder`.

        Args:
            folder: as given to `record`.
            verify: also compare each shard's SHA-256 with the index, which reads all of it; the
                lengths are always compared.

        Raises:
            ReadError: if the recording is unfinished, or a file is missing, truncated or damaged.
        """
        folder = usable(folder)
        index = Index.read(folder)
        for shard in index.shards if verify else ():
            if sha256_file(folder / shard.file) != shard.sha256:
                raise ReadError(
                    f"shard {folder / shard.file} is not what was recorded: its SHA-256 differs "
                    "from the index; restore it, or delete the folder and record again"
                )
        return cls(folder, index)

    def batches(
        self,
        size: int,
        *,
        shuffle_seed: int | None = None,
        keep: Callable[[Int[Tensor, " rows"]], Bool[Tensor, " rows"]] | None = None,
    ) -> Iterator[Batch]:
        """Yield every row once, `size` at a time (the last batch may be smaller).

        Memory stays bounded for any length of the recording: without shuffling about one batch is
        held. With shuffling, blocks of 1024 neighbouring rows are drawn from the whole recording
        in random order until 65 536 rows or 256 MiB are together, and those rows are permuted: up
        to that length the order is uniformly random, beyond it neighbours stay in one window.

        Args:
            size: rows in a batch.
            shuffle_seed: of the random order; None is the order of the loader.
            keep: gets image indices (rows,) and says which rows to yield; the others are skipped.

        Raises:
            InputError: if `size` is not positive.
            ReadError: if a shard is missing or damaged; it is named.
        """
        size = whole(size, "batch size", least=1)
        blocks = [
            (shard, start, min(start + BLOCK_ROWS, shard.rows))
            for shard in self._shards
            for start in range(0, shard.rows, BLOCK_ROWS)
        ]
        if shuffle_seed is None:
            return _cut(self._read(blocks, keep), size)
        random = torch.Generator().manual_seed(shuffle_seed)
        order = torch.randperm(len(blocks), generator=random).tolist()
        # Blocks, since single rows drawn from all over a disk cost a seek each; a window of many
        # blocks, since the rows of one block are neighbours, often of one image.
        window = min(WINDOW_ROWS, max(BLOCK_ROWS, WINDOW_BYTES // (4 * self.width)))
        windows = _cut(self._read([blocks[i] for i in order], keep), window)
        return _cut(
            (rows[torch.randperm(len(rows), generator=random)] for rows in windows),
            size,
        )

    def tensor(self) -> Float[Tensor, "rows width"]:
        """Return all rows in the loader's order, float32, in memory."""
        # Filled bit by bit, since joining all parts at the end would take the memory twice.
        rows = torch.empty(self.n_rows, self.width, dtype=torch.float32)
        start = 0
        for batch in self.batches(BLOCK_ROWS):
            rows[start : start + len(batch)] = batch.x
            start += len(batch)
        return rows

    def labels(self) -> Int[Tensor, " rows"]:
        """Return the class index of every row, in the loader's order.

        Raises:
            InputError: if images have several labels, or targets.
        """
        name = tensor_name(self.labelling)
        parts = [self._part(shard, 0, shard.rows, name)[0] for shard in self._shards]
        return indices_in(torch.cat(parts))

    def image_labels(self) -> Int[Tensor, " images"]:
        """Return the class index of every image, one each, in the loader's order.

        Raises:
            InputError: as for `labels`.
        """
        return indices_in(self._image_annotations())

    def multi_hot(self) -> Bool[Tensor, "images classes"]:
        """Return which classes every image belongs to, in the loader's order.

        Raises:
            InputError: if images have targets.
        """
        annotation = self._image_annotations()
        if annotation.ndim == 2:
            return annotation.bool()
        return torch.nn.functional.one_hot(indices_in(annotation), self.n_classes).bool()

    def targets(self) -> Float64[Tensor, " images"]:
        """Return the target of every image, in the loader's order.

        Raises:
            InputError: if images have classes instead.
        """
        if self.labelling != "target":
            raise InputError(
                f"the recording's labels are of the form '{self.labelling}'; targets are recorded "
                "with record(..., labels='target') of a model with one output"
            )
        return self._image_annotations()

    def _image_annotations(self) -> Tensor:
        parts = []
        for shard in self._shards:
            # A shard ends with a batch, so that no image is in two of them and each is counted
            # once.
            annotation, images = self._part(
                shard, 0, shard.rows, tensor_name(self.labelling), "images"
            )
            parts.append(annotation[images.diff(prepend=images[:1] - 1) != 0])
        return torch.cat(parts)

    def _read(
        self,
        blocks: Iterable[tuple[Shard, int, int]],
        keep: Callable[[Tensor], Tensor] | None,
    ) -> Iterator[Batch]:
        for shard, start, stop in blocks:
            x, annotation, images = self._part(
                shard, start, stop, "activations", tensor_name(self.labelling), "images"
            )
            batch = Batch(x.float(), annotation, images + shard.images_from)
            # The numbers in the file count from the start of its part of a joined recording.
            yield batch if keep is None else batch[keep(batch.images)]

    def _check_in_place(self) -> None:
        """Raise ReadError if another recording has taken this one's folder since it was opened."""
        mark = _mark(self.folder)
        if mark == self._index:
            return
        if Index.read(self.folder).shards != self._shards:
            raise ReadError(
                f"{self.folder} holds another recording than when this one was opened; record each "
                "into a folder of its own, or open the new one with Activations.load"
            )
        self._index = mark

    def _part(self, shard: Shard, start: int, stop: int, *names: str) -> list[Tensor]:
        self._check_in_place()
        path = self.folder / shard.file
        try:
            with safe_open(path, framework="pt") as file:
                slices = [file.get_slice(name) for name in names]
                # Shapes are in the file's head: a shard that somebody exchanged is refused before
                # it is read.
                columns = {"activations": [self.width]}
                if self.labelling == "multi-hot":
                    columns["labels"] = [self.n_classes]
                for name, part in zip(names, slices, strict=True):
                    shape = [shard.rows, *columns.get(name, [])]
                    if part.get_shape() != shape:
                        raise ReadError(
                            f"shard {path} holds '{name}' of shape {part.get_shape()}, expected "
                            f"{shape}; delete the folder and record again"
                        )
                first = int(file.get_slice("images")[:1]) + shard.images_from
                if first != self._first[shard.file]:
                    raise ReadError(
                        f"shard {path} begins with image {first}, not {self._first[shard.file]}: "
                        "it is another shard's; restore it, or delete the folder and record again"
                    )
                # Only these rows are read, whatever the length of the shard.
                return [part[start:stop] for part in slices]
        except (OSError, SafetensorError) as error:
            if isinstance(error, ReadError):
                raise
            raise ReadError(
                f"cannot read shard {path}: {error}; restore it, or delete the folder and record "
                "again"
            ) from error


def _mark(folder: Path) -> tuple[int, ...] | None:
    """Return what changes when a folder's index is written again; None without one."""
    try:
        status = (folder / INDEX_FILE).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _cut(parts: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Yield the rows of all parts in order, `size` at a time, never holding much more."""
    held: list[Batch] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count < size:
            continue
        rows = Batch.joined(held)
        # What does not fill a batch waits for the next part, so that batches do not end where
        # shards do.
        whole = count - count % size
        for start in range(0, whole, size):
            yield rows[start : start + size]
        held, count = [rows[whole:]], count - whole
    if count:
        yield Batch.joined(held)
