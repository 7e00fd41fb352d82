"""A recording made by several processes: each records its share, one index joins them."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader, IterableDataset

from salve_plugin.discover.recording.labelling import tensor_name
from salve_plugin.discover.recording.loader import checked, length
from salve_plugin.discover.recording.shards import Index, Shard
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.recording.unsplit import every_nth, expected_images
from salve_plugin.errors import InputError, ReadError


def part_folder(folder: Path, rank: int) -> Path:
    """Return where a process keeps its part of the recording in `folder`."""
    return folder / f"part-{rank:05d}"


class Share:
    """This process's batches: every size-th of the loader's, from its rank on.

    A `DataLoader` over a map-style data set reads only the images of its own batches; of anything
    else the other processes' batches are skipped. It can be gone through again and again.

    Attributes:
        loader: of all images.
        dataset: of the loader.
        first: fingerprint of the whole loader's first batch, once this was gone through: the same
            in every process, unless each has other data or another order.
    """

    def __init__(self, loader: Iterable[Any], team: Team) -> None:
        """Share out a loader of all images, see `whole`."""
        self.loader, self._team = loader, team
        self.dataset = getattr(loader, "dataset", None)
        self.first = ""
        self._own = _map_style(loader)

    def __len__(self) -> int:
        """Return the number of batches.

        Raises:
            TypeError: if the loader does not know its own.
        """
        count = length(self.loader)
        if count is None:
            raise TypeError("the loader has no length")
        return len(range(self._team.rank, count, self._team.size))

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        if self._own is None:
            for number, item in enumerate(self.loader):
                if number == 0:
                    self.first = checked(item, 0, None, labelling=None).fingerprint()
                if number % self._team.size == self._team.rank:
                    yield item
            return
        own = every_nth(self._own, self._team.rank, self._team.size)
        # Every process compares the first batch, whoever's share it is in: it is read once more.
        batches = self._own.batch_sampler
        assert batches is not None
        indices = next(iter(batches), None)
        if indices is not None:
            read = self._own.collate_fn([self._own.dataset[index] for index in indices])
            self.first = checked(read, 0, None, labelling=None).fingerprint()
        yield from own


def _map_style(loader: Iterable[Any]) -> DataLoader[Any] | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return loader if loader.batch_sampler is not None else None


def check_together(team: Team, share: Share, images: int, *, failed: bool) -> None:
    """Wait for all processes and compare what each has seen of the loader.

    Args:
        team: the processes.
        share: of this one, gone through.
        images: that it recorded.
        failed: whether it could not record its part.

    Raises:
        ReadError: if another process failed.
        InputError: if the processes have different loaders, or images are missing.
    """
    expected = expected_images(share.loader)
    # In one tensor, since tensors are what processes exchange; 15 hex digits are 60 bits, which an
    # int64 holds.
    own = [failed, images, -1 if expected is None else expected, int(share.first[:15] or "0", 16)]
    seen = team.gather(torch.tensor(own, dtype=torch.int64, device=team.device)).view(team.size, -1)
    broken = seen[:, 0].nonzero().flatten().tolist()
    if broken:
        raise ReadError(
            f"process {broken[0]} could not record its part, its own message says why; record "
            "again, then every process continues its part"
        )
    if bool((seen[:, 2:] != seen[0, 2:]).any()):
        raise InputError(
            "the loaders of the processes are different: each must be the loader of all images, in "
            "one order (shuffle=False), and record() shares it out. Give the data set as it was "
            "before it was split"
        )
    total = int(seen[:, 1].sum())
    if expected is not None and total != expected:
        message = f"{team.size} processes recorded {total} of the {expected} images of the data set"
        if total > expected or not getattr(share.loader, "drop_last", False):
            raise InputError(f"{message}; give a loader that yields each image once")
        warnings.warn(f"{message}: drop_last=True left out the rest", UserWarning, stacklevel=4)


def join(folder: Path, parts: int) -> None:
    """Write the index that makes the finished parts one recording; parts follow in order of rank.

    Raises:
        InputError: if the parts are of different models, sites or classes.
        ReadError: if one is missing, unfinished or damaged.
        WriteError: if the index cannot be written.
    """
    indices = [Index.read(part_folder(folder, rank)) for rank in range(parts)]
    first, shards, images = indices[0], [], 0
    for rank, index in enumerate(indices):
        if not index.finished:
            raise ReadError(f"part {rank} of the recording in {folder} is unfinished; record again")
        for name in ("site", "model_sha256", "classes", "dtype", "labelling"):
            if getattr(index, name) != getattr(first, name):
                raise InputError(
                    f"part {rank} of the recording in {folder} has another {name} than part 0; "
                    "delete the folder and record again"
                )
        prefix = part_folder(folder, rank).name
        shards += [
            replace(shard, file=f"{prefix}/{shard.file}", images_from=images)
            for shard in index.shards
        ]
        images += index.n_images
    joined = replace(
        first,
        shards=tuple(shards),
        n_classes=max(index.n_classes or 0 for index in indices),
        labels_sha256=_labels_sha256(folder, shards, tensor_name(first.labelling or "class")),
        images_sha256=None,  # nobody has seen them all in this order
    )
    joined.write(folder)


def _labels_sha256(folder: Path, shards: list[Shard], name: str) -> str:
    """Return the SHA-256 of the label of every image, in order."""
    digest = hashlib.sha256()
    for shard in shards:
        try:
            with safe_open(folder / shard.file, framework="pt") as file:
                labels, images = file.get_tensor(name), file.get_tensor("images")
        except (OSError, SafetensorError) as error:
            raise ReadError(f"cannot read shard {folder / shard.file}: {error}") from error
        # The rows of an image are neighbours with one number: where it changes, an image begins.
        firsts = images.diff(prepend=images[:1] - 1) != 0
        digest.update(labels[firsts].numpy().tobytes())
    return digest.hexdigest()
