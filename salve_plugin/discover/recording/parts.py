"""A recording made by several processes: each records its share, one index joins them."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader

from salve_plugin.discover.recording.shards import Index, Shard
from salve_plugin.discover.recording.team import Team
from salve_plugin.errors import InputError, ReadError


def part_folder(folder: Path, rank: int) -> Path:
    """Return where a process keeps its part of the recording in `folder`."""
    return folder / f"part-{rank:05d}"


def share_of(loader: Iterable[Any], team: Team) -> Iterable[Any]:
    """Return this process's batches: every size-th of the loader's, from its rank on.

    A `DataLoader` over a map-style data set reads only the images of its own batches
    (`accelerate` splits it); of anything else the other processes' batches are skipped.
    """
    if isinstance(loader, DataLoader) and loader.batch_sampler is not None:
        from accelerate.data_loader import prepare_data_loader

        prepared: Iterable[Any] = prepare_data_loader(
            loader,
            num_processes=team.size,
            process_index=team.rank,
            put_on_device=False,
            even_batches=False,
        )
        return prepared
    return _Strided(loader, team)


class _Strided:
    """Every size-th batch of an iterable; it can be gone through again and again."""

    def __init__(self, loader: Iterable[Any], team: Team) -> None:
        self._loader, self._team = loader, team
        self.dataset = getattr(loader, "dataset", None)

    def __iter__(self) -> Any:
        return islice(self._loader, self._team.rank, None, self._team.size)


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
        for name in ("site", "model_sha256", "classes", "dtype"):
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
        labels_sha256=_labels_sha256(folder, shards),
        images_sha256=None,  # nobody has seen them all in this order
    )
    joined.write(folder)


def _labels_sha256(folder: Path, shards: list[Shard]) -> str:
    """Return the SHA-256 of the label of every image, in order."""
    digest = hashlib.sha256()
    for shard in shards:
        try:
            with safe_open(folder / shard.file, framework="pt") as file:
                labels, images = file.get_tensor("labels"), file.get_tensor("images")
        except (OSError, SafetensorError) as error:
            raise ReadError(f"cannot read shard {folder / shard.file}: {error}") from error
        firsts = images.diff(prepend=images[:1] - 1) != 0
        digest.update(labels[firsts].numpy().tobytes())
    return digest.hexdigest()
