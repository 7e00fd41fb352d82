"""A loader of all images, from one that gives each process its share only."""

import warnings
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any, cast

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, SequentialSampler

from salve_plugin.errors import InputError

KEPT = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
    "multiprocessing_context", "prefetch_factor", "persistent_workers",
)  # fmt: skip
"""What a loader that is made anew has of the one given."""


class EveryNth(Sampler[list[int]]):
    """Every n-th of a sampler's batches, from the first-th on."""

    def __init__(self, batches: Iterable[list[int]], first: int, n: int) -> None:
        """Remember the batches; they are gone through anew each time."""
        self.batches, self._first, self._n = batches, first, n

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch."""
        return islice(self.batches, self._first, None, self._n)

    def __len__(self) -> int:
        """Return the number of batches."""
        assert isinstance(self.batches, Sized)
        return len(range(self._first, len(self.batches), self._n))


def unsplit(loader: Iterable[Any]) -> Iterable[Any]:
    """Return a loader of all images of the data set, in its order.

    What `accelerator.prepare()` did and what a `DistributedSampler` does is undone, whoever split
    the data first; any other loader comes back as it is.

    Raises:
        InputError: if it is no loader, or split in a way that is not known.
    """
    if not isinstance(loader, DataLoader):
        # Not `Iterable` alone: what numbers its batches by __getitem__ can be gone through, too.
        # A tensor of no dimension has both.
        readable = isinstance(loader, Iterable) or hasattr(loader, "__getitem__")
        if not readable or (isinstance(loader, Tensor) and not loader.ndim):
            raise InputError(
                f"a loader was expected, got {type(loader).__name__}: pass batches of (images, "
                "labels), such as a DataLoader or a list of them"
            )
        for part in (loader, getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
            _check_whole(part, loader)
        return loader
    if isinstance(loader.dataset, IterableDataset):
        dataset: Any = loader.dataset
        while _is_share(dataset) and isinstance(getattr(dataset, "dataset", None), IterableDataset):
            dataset = dataset.dataset
        _check_whole(dataset, loader)
        if dataset is loader.dataset and not _is_dispatched(loader):
            return loader
        return _again(loader, dataset, batch_size=loader.batch_size, drop_last=loader.drop_last)
    batches: Any = loader.batch_sampler
    if batches is None:
        _check_whole(loader.sampler, loader)
        return loader
    while _is_share(batches) and hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", None)
    # A share's order is that of a shuffled or padded data set; all of it has an order of its own.
    if _is_share(sampler) and type(batches) is BatchSampler and _is_of(sampler, loader.dataset):
        sampler = SequentialSampler(loader.dataset)  # type: ignore[arg-type] # it has a length
        batches = BatchSampler(sampler, batches.batch_size, batches.drop_last)
    for part in (batches, sampler):
        _check_whole(part, loader)
    if batches is loader.batch_sampler and not _is_dispatched(loader):
        return loader
    if type(batches) is BatchSampler:
        size, drop_last = batches.batch_size, batches.drop_last
        return _again(
            loader, loader.dataset, batch_size=size, drop_last=drop_last, sampler=batches.sampler
        )
    return _again(loader, loader.dataset, batch_sampler=batches)


def every_nth(loader: DataLoader[Any], first: int, n: int) -> DataLoader[Any]:
    """Return a loader of every n-th batch of a loader of all images, from the first-th on."""
    assert loader.batch_sampler is not None
    return _again(loader, loader.dataset, batch_sampler=EveryNth(loader.batch_sampler, first, n))


def check_count(loader: Iterable[Any], images: int) -> None:
    """Compare the images of a loader that was read to its end with its data set.

    Raises:
        InputError: if there were more of them.

    Warns:
        UserWarning: if there were fewer.
    """
    expected = expected_images(loader)
    if expected is None or images == expected:
        return
    if images > expected:
        raise InputError(
            f"the loader yielded {images} images, its data set has {expected}: some came more than "
            "once. Give a loader that yields each image once; workers of an iterable data set must "
            "each yield a part of it (torch.utils.data.get_worker_info), or num_workers be 0"
        )
    warnings.warn(
        f"the loader yielded {images} of the {expected} images of its data set: the others are "
        "left out by drop_last=True or by its sampler",
        UserWarning,
        stacklevel=3,
    )


def expected_images(loader: Iterable[Any]) -> int | None:
    """Return how many images a `DataLoader` should yield; None if that cannot be known."""
    if not isinstance(loader, DataLoader) or isinstance(loader.batch_sampler, EveryNth):
        return None
    batches, known = loader.batch_sampler, cast(object, loader.dataset)
    if type(batches) is BatchSampler and not isinstance(known, IterableDataset):
        known = batches.sampler  # what the caller chose of the data set
    try:
        return len(known) if isinstance(known, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _again(loader: DataLoader[Any], dataset: Any, **batches: Any) -> DataLoader[Any]:
    # Made anew, since a loader refuses another sampler once it exists.
    return DataLoader(dataset, **batches, **{name: getattr(loader, name) for name in KEPT})


def _count(part: object) -> int:
    """Return among how many processes a sampler or data set says that it is shared out."""
    for name in ("num_replicas", "num_processes"):  # of torch and of accelerate
        count = getattr(part, name, None)
        if isinstance(count, int):
            return count
    return 1


def _is_share(part: object) -> bool:
    return _count(part) > 1


def _is_of(sampler: Any, dataset: Any) -> bool:
    own = getattr(sampler, "dataset", dataset)
    return own is dataset or len(own) == len(dataset)


def _is_dispatched(loader: object) -> bool:
    """Tell whether one process reads the data and sends the others their shares (accelerate)."""
    # By its name: accelerate need not be installed.
    return any(base.__name__ == "DataLoaderDispatcher" for base in type(loader).__mro__)


def _check_whole(part: object, loader: object) -> None:
    if _is_share(part):
        raise InputError(
            f"the loader ({type(loader).__name__}) is split among {_count(part)} processes "
            f"already, by a {type(part).__name__}: give the loader of all images, as it was before "
            "it was split or prepared"
        )
