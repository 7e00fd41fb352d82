"""Loaders that give a process its share, or an image twice, are undone or refused."""

from collections.abc import Iterator

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from salve_plugin.discover.recording.loader import labelled_batches
from salve_plugin.discover.recording.unsplit import unsplit
from salve_plugin.errors import InputError

DATA = TensorDataset(torch.rand(23, 3, 4, 4, generator=torch.Generator()), torch.arange(23))


def labels(loader: object) -> list[int]:
    batches = labelled_batches(loader, None)  # type: ignore[arg-type]
    return [int(label) for batch in batches for label in batch.labels]


def sampler(rank: int, shuffle: bool = False) -> DistributedSampler[tuple[Tensor, ...]]:
    return DistributedSampler(DATA, num_replicas=3, rank=rank, shuffle=shuffle)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("split_batches", [False, True])
@pytest.mark.parametrize("sampled", [False, True])
def test_what_prepare_did_is_undone(
    rank: int, even: bool, split_batches: bool, sampled: bool
) -> None:
    given = DataLoader(DATA, batch_size=6, sampler=sampler(rank) if sampled else None)
    prepared = prepare_data_loader(
        given, num_processes=3, process_index=rank, put_on_device=False, even_batches=even,
        split_batches=split_batches,
    )  # fmt: skip
    assert [len(y) for _, y in prepared] != [len(y) for _, y in DataLoader(DATA, 6)]
    assert labels(prepared) == list(range(23))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_distributed_sampler_is_undone_also_when_it_pads_or_shuffles(shuffle: bool) -> None:
    loader = DataLoader(DATA, batch_size=5, sampler=sampler(1, shuffle), drop_last=False)
    assert labels(loader) == list(range(23))


class Stream(IterableDataset[tuple[Tensor, int]]):
    """Twelve images; each worker yields its part, or all of them."""

    def __init__(self, shared: bool) -> None:
        """Remember it."""
        self.shared = shared

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """Go through it."""
        info = get_worker_info()
        own = slice(info.id, None, info.num_workers) if info and self.shared else slice(None)
        return ((torch.full((3, 4, 4), float(label)), label) for label in range(12)[own])


def test_an_iterable_data_set_that_every_worker_yields_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 workers are the same images.*num_workers=0"):
        labels(DataLoader(Stream(shared=False), batch_size=4, num_workers=2))
    assert sorted(labels(DataLoader(Stream(shared=True), 4, num_workers=2))) == list(range(12))
    assert labels(DataLoader(Stream(shared=False), 4)) == list(range(12))


class Shuffled(Stream):
    """Each worker yields all images in an order of its own."""

    def __len__(self) -> int:
        """Return the number of images."""
        return 12

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """Go through it."""
        info = get_worker_info()
        return reversed(list(super().__iter__())) if info and info.id else super().__iter__()


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_more_images_than_the_data_set_has_are_refused() -> None:
    with pytest.raises(InputError, match="yielded 24 images, its data set has 12"):
        labels(DataLoader(Shuffled(shared=False), 4, num_workers=2))


def test_a_share_of_an_iterable_data_set_is_undone() -> None:
    prepared = prepare_data_loader(
        DataLoader(Stream(shared=True), 4), num_processes=2, process_index=1, put_on_device=False
    )
    assert len([y for _, y in prepared]) < 3
    assert labels(prepared) == list(range(12))


def test_images_that_are_left_out_are_counted() -> None:
    with pytest.warns(UserWarning, match="20 of the 23 images of its data set.*drop_last=True"):
        assert labels(DataLoader(DATA, 5, drop_last=True)) == list(range(20))


class Batches(Sampler[list[int]]):
    """A process's batches, told by names that others use too."""

    num_replicas, rank = 2, 1

    def __iter__(self) -> Iterator[list[int]]:
        """Go through it."""
        return iter([[0, 1], [2]])


class Wrapped:
    """A loader around another, as some libraries have."""

    def __init__(self) -> None:
        """Remember it."""
        self.sampler = sampler(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through it."""
        return iter(DataLoader(DATA, 5, sampler=self.sampler))


def test_a_split_that_is_not_known_is_refused() -> None:
    for loader in (
        DataLoader(DATA, batch_sampler=Batches()),
        DataLoader(DATA, batch_size=None, sampler=sampler(0)),
        Wrapped(),
    ):
        with pytest.raises(InputError, match=r"is split among [23] processes already"):
            labels(loader)


@pytest.mark.usefixtures("untyped")
def test_what_yields_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="a loader was expected, got NoneType"):
        labels(None)


def test_what_is_whole_comes_back_as_it_is() -> None:
    for loader in (DataLoader(DATA, 5), DataLoader(DATA, batch_size=None), [1, 2]):
        assert unsplit(loader) is loader
