"""What a caller's loader yields: checked batches, their fingerprints, the names of the classes."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from salve_plugin.discover.recording.labelling import Labelling, annotations, labelling_of
from salve_plugin.discover.recording.unsplit import check_count, unsplit
from salve_plugin.errors import InputError, ReadError, SalveError
from salve_plugin.kinds import several

SAMPLED_VALUES = 1024
"""Evenly spaced values of each image that enter a batch's fingerprint."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One batch of a loader.

    Attributes:
        number: of the batch, from 0.
        images: (batch, ...), as the loader gave them.
        labels: class indices (batch,), int64, on the CPU; where they are asked for, multi-hot rows
            (batch, classes), uint8, or targets (batch,), float64.
    """

    number: int
    images: Tensor
    labels: Tensor

    def fingerprint(self) -> str:
        """Return a SHA-256 over labels, image shape and type, and 1024 values of each image."""
        digest = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)}".encode())
        for part in (self.labels, self.sampled()):
            digest.update(_octets(part))
        return digest.hexdigest()

    def sampled(self) -> Tensor:
        """Return 1024 evenly spaced values of each image, fewer of a small one."""
        values = self.images.detach().flatten(1)
        # The stride is rounded up: rounded down, it would take up to twice as many values.
        return values[:, :: max(1, -(-values.shape[1] // SAMPLED_VALUES))].cpu()


class ImagesDigest:
    """One SHA-256 over the images of a loader in order, whatever the size of its batches.

    Of each image its shape and type and 1024 evenly spaced values are hashed.
    """

    def __init__(self) -> None:
        """Begin with no image."""
        self._digest = hashlib.sha256()

    def add(self, batch: LabelledImages) -> None:
        """Go on with the images of the next batch."""
        kind = f"{batch.images.dtype} {tuple(batch.images.shape[1:])}".encode()
        for image in batch.sampled():
            self._digest.update(kind)
            self._digest.update(_octets(image))

    def hexdigest(self) -> str:
        """Return the digest of all images so far."""
        return self._digest.hexdigest()


def _octets(tensor: Tensor) -> bytes:
    # As octets, since NumPy has no bfloat16; flat before, since a tensor without axes cannot be
    # seen as octets.
    octets: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return octets


def labelled_batches(
    loader: Iterable[Any],
    n_classes: int | None,
    *,
    several_logits: bool = False,
    labelling: Labelling | None = "class",
) -> Iterator[LabelledImages]:
    """Yield the batches of all images of the loader, checked.

    A loader that gives this process its share only is undone, see `whole`.

    Args:
        loader: yields (images, labels) pairs.
        n_classes: labels must be below; None if unknown.
        several_logits: whether the model is known to have several: then labels in the forms that
            belong to one logit (truth values, floats, a column) are refused.
        labelling: what the labels must be; None takes all for what those of the first batch are.

    Raises:
        InputError: if the loader yields nothing, something else than images with labels, or images
            more than once.
        ReadError: if the data set cannot read an image; its file is named if that can be known.

    Warns:
        UserWarning: if images of the data set were left out.
    """
    loader = unsplit(loader)
    workers = getattr(loader, "num_workers", 0)
    iterable = isinstance(getattr(loader, "dataset", None), torch.utils.data.IterableDataset)
    batches = _read(loader, n_classes, several_logits, labelling)
    # Each worker of an iterable data set yields all of it unless the data set asks which worker it
    # is in: then the first batch of each is the same. Nothing is used before that is known.
    first = list(islice(batches, workers if iterable else 0))
    prints = Counter(batch.fingerprint() for batch in first)
    if len(prints) < len(first):
        raise InputError(
            f"the first batches of the loader's {workers} workers are the same images: each worker "
            "yields all of the iterable data set. Use num_workers=0, or let its __iter__ yield a "
            "part in each worker (torch.utils.data.get_worker_info)"
        )
    images = 0
    for batch in chain(first, batches):
        yield batch
        images += len(batch.labels)
    if images == 0:
        raise InputError("the loader is empty: it yielded no batch of (images, labels)")
    check_count(loader, images)


def _read(
    loader: Iterable[Any],
    n_classes: int | None,
    several_logits: bool,
    labelling: Labelling | None,
) -> Iterator[LabelledImages]:
    iterator: Iterator[Any] | None = None
    images_seen = number = 0
    while True:
        try:
            iterator = iter(loader) if iterator is None else iterator
            item = next(iterator)
        except StopIteration:
            return
        except SalveError:
            raise
        except (OSError, SyntaxError) as error:  # PIL reports some damaged files as SyntaxError
            where = _unreadable(loader, images_seen) or f"an image of batch {number}"
            reason = str(error).strip().rpartition("\n")[2]  # a worker's traceback comes before it
            raise ReadError(
                f"cannot read {where}: {reason}; repair or remove the file, then record again"
            ) from error
        batch = checked(item, number, n_classes, several_logits, labelling)
        # What the first batch is taken for, all that follow must be.
        labelling = labelling_of(batch.labels)
        yield batch
        images_seen += len(batch.labels)
        number += 1


def checked(
    item: Any,
    number: int,
    n_classes: int | None,
    several_logits: bool = False,
    labelling: Labelling | None = "class",
) -> LabelledImages:
    """Return a batch of a loader, its labels on the CPU.

    Raises:
        InputError: if it is something else than images with such labels.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[0], Tensor):
        raise InputError(
            f"batch {number} of the loader is {_described(item)}; expected a pair (images, labels) "
            "with images a tensor (batch, ...)"
        )
    images = item[0]
    try:
        labels = torch.as_tensor(item[1]).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels of batch {number} are not numbers: {error}") from error
    if labels.is_complex():
        raise InputError(
            f"labels of batch {number} are {labels.dtype}; expected integer class indices"
        )
    labels = annotations(labels, number, several_logits, labelling)
    kind = labelling_of(labels)
    misfit = labels.shape[:1] != images.shape[:1] or (labels.ndim == 2) != (kind == "multi-hot")
    if images.ndim < 2 or misfit or len(labels) == 0:
        raise InputError(
            f"batch {number} has images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected (batch, ...) and (batch,) with at least one image"
        )
    if kind != "class":
        _check_columns(labels, number, n_classes)
        return LabelledImages(number, images, labels)
    wrong = labels[(labels < 0) | (labels >= (n_classes or labels.max() + 1))]
    if len(wrong):
        expected = "0 or more" if n_classes is None else f"0 to {n_classes - 1}"
        raise InputError(
            f"label {int(wrong[0])} in batch {number} is out of range: expected class indices "
            f"{expected}. Labels are the model's class indices; class names, if given, must name "
            "all of them"
        )
    return LabelledImages(number, images, labels)


def _check_columns(labels: Tensor, number: int, n_classes: int | None) -> None:
    if labels.ndim == 2 and n_classes not in (None, labels.shape[1]):
        raise InputError(
            f"multi-hot labels of batch {number} have {labels.shape[1]} columns, and the model has "
            f"{n_classes} classes: column i is for its output i"
        )


def _described(item: Any) -> str:
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {[type(part).__name__ for part in item]}"
    return f"a {type(item).__name__}"


def _unreadable(loader: Any, first: int) -> str | None:
    """Find the first item from position `first` that cannot be read, if the order is known."""
    dataset, size = getattr(loader, "dataset", None), getattr(loader, "batch_size", None)
    sampler = getattr(loader, "sampler", None)
    if size is None or not isinstance(sampler, torch.utils.data.SequentialSampler):
        return None
    for position in range(first, min(first + size, len(sampler))):
        try:
            dataset[position]  # type: ignore[index] # a loader with a sampler has a map-style data set
        except (OSError, SyntaxError):
            source, index = _source(dataset, position)
            samples = getattr(source, "samples", None)
            return f"image {position}" if samples is None else str(samples[index][0])
    return None


def _source(dataset: Any, position: int) -> tuple[Any, int]:
    """Follow `Subset`s down to the data set that reads files."""
    while isinstance(dataset, torch.utils.data.Subset):
        dataset, position = dataset.dataset, dataset.indices[position]
    return dataset, position


def class_names(loader: Any, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the class names by label: those given, else the data set's own `classes`.

    Raises:
        InputError: if two classes have the same name, or a name is not a string, or data sets are
            joined whose classes differ.
    """
    named = _names_of(getattr(loader, "dataset", None)) if given is None else given
    names = () if named is None else several(named, "classes", "a list of class names, by label")
    if not names:
        return None
    wrong: list[object] = [name for name in names if not isinstance(name, str)]
    wrong = wrong or [name for name, number in Counter(names).items() if number > 1]
    if wrong:
        raise InputError(
            f"class names must be different strings; {wrong[:5]} are not strings or occur twice"
        )
    return names


def _names_of(dataset: Any) -> Any:
    """Return the `classes` of a data set, or of those that it is made of."""
    if isinstance(dataset, torch.utils.data.Subset):
        return _names_of(dataset.dataset)
    if not isinstance(dataset, torch.utils.data.ConcatDataset):
        return getattr(dataset, "classes", None)
    names = [list(_names_of(part) or ()) for part in dataset.datasets]
    other = next((part for part in names if part != names[0]), None)
    if other is not None:
        raise InputError(
            f"the data sets of the loader are joined, and number different classes: "
            f"{names[0][:8]} and {other[:8]}, so that label 0 of one is not label 0 of the other. "
            "Record each by itself, or say what the labels mean: record(..., classes=[...]), or "
            "classes=() for the model's own indices"
        )
    return names[0] if names else None


def length(loader: Iterable[Any]) -> int | None:
    """Return the number of batches, if the loader knows it."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has __len__ but no length
        return None
