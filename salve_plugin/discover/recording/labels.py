"""Labels of a data set as the class indices of the model: its own, or those of other names."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from salve_plugin.adapter import adapter_of
from salve_plugin.discover.recording.loader import (
    LabelledImages,
    class_names,
    labelled_batches,
)
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel

CLASSES_HINT = (
    ". If the labels are the model's class indices already, say so with record(..., classes=()); "
    "labels of an attribute go into find_concept(acts, has) or profile(..., attribute=)"
)


@dataclass(frozen=True, eq=False)
class Labels:
    """What the labels of a loader are for a model.

    Attributes:
        n_classes: number of the model's classes; None if it is not known.
        classes: a name for each of them; None without names.
        indices: the model's class for each label of the loader; None if they are the same.
    """

    n_classes: int | None
    classes: tuple[str, ...] | None = None
    indices: Int64[Tensor, " labels"] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        n_classes: int | None,
        loader: Iterable[Any],
        given: Sequence[str] | None = None,
    ) -> "Labels":
        """Compare the names of a data set's classes with the model's classes.

        Args:
            model: the bare model.
            n_classes: that its classifier has now.
            loader: its data set may have `classes`.
            given: names by label instead; empty for labels that are the model's class indices.

        Raises:
            InputError: if the names are not those of the model's classes, nor one for each.
        """
        names = class_names(loader, given)
        if names is None or n_classes is None:
            return cls(n_classes, names)
        try:
            own = adapter_of(model).class_names(model)
        except UnsupportedModelError:
            own = None
        if own is not None and len(own) != n_classes:
            own = None  # they are those of the classifier that it had before
        indices, classes = model_classes(names, own, n_classes)
        same = indices == list(range(n_classes))
        return cls(n_classes, classes, None if same else torch.tensor(indices))

    def of_model(self, batch: LabelledImages) -> LabelledImages:
        """Return a batch with the model's class indices as labels.

        Raises:
            InputError: if a label has no name.
        """
        if self.indices is None or batch.labels.is_floating_point():
            return batch
        if batch.labels.ndim == 2:
            return replace(batch, labels=self._columns(batch))
        wrong = batch.labels[batch.labels >= len(self.indices)]
        if len(wrong):
            raise InputError(
                f"label {int(wrong[0])} in batch {batch.number} is out of range: the data set "
                f"names {len(self.indices)} classes, and the model has {self.n_classes}"
                f"{CLASSES_HINT}"
            )
        return replace(batch, labels=self.indices[batch.labels])

    def _columns(self, batch: LabelledImages) -> Tensor:
        """Return multi-hot labels with a column for each class of the model."""
        assert self.indices is not None
        assert self.n_classes is not None
        if batch.labels.shape[1] != len(self.indices):
            raise InputError(
                f"multi-hot labels of batch {batch.number} have {batch.labels.shape[1]} columns, "
                f"and the data set names {len(self.indices)} classes"
            )
        hot = batch.labels.new_zeros(len(batch.labels), self.n_classes)
        hot[:, self.indices] = batch.labels
        return hot


def model_batches(hooked: HookedModel, loader: Iterable[Any]) -> Iterator[LabelledImages]:
    """Yield a loader's batches with the model's class indices as labels.

    Raises:
        SalveError: as `Labels.of` and `labelled_batches`.
    """
    named = Labels.of(hooked.model, n_outputs(hooked), loader)
    # Labels of a data set's own names are checked where they are turned into the model's.
    bound = named.n_classes if named.indices is None else None
    yield from map(named.of_model, labelled_batches(loader, bound))


def n_outputs(hooked: HookedModel) -> int | None:
    """Return how many classes the model's logits tell apart now; None if it is not known.

    One logit has two sides.
    """
    for site in hooked.head_sites:
        return max(2, len(hooked.unembed(site, partial=True)[1]))
    known = hooked.description.get("num_classes")
    return max(2, known) if isinstance(known, int) else None


def check_of_model(classes: Sequence[str] | None, n_classes: int) -> None:
    """Raise InputError if class names are not one for each class of the model."""
    if classes is not None and len(classes) != n_classes:
        raise InputError(
            f"the recording's labels are {list(classes)[:8]}, {len(classes)} of them, and the "
            f"classifier has {n_classes} classes: label 0 of one is not row 0 of the other. Record "
            "with the model's own labels; an attribute goes into find_concept(acts, has)"
        )


def model_classes(
    given: Sequence[str],
    names: Sequence[Sequence[str]] | None,
    n: int,
    *,
    what: str = "class names",
) -> tuple[list[int], tuple[str, ...]]:
    """Return the model's class of each class of a data set, and a name for each of the model's.

    Args:
        given: names of the data set's classes, by label.
        names: for each class of the model, the names that it is known by, if any are.
        n: number of classes of the model.
        what: the data set's names are, for the message.

    Raises:
        InputError: see `match_classes`.
    """
    indices = match_classes(given, names, n, what=what)
    own = dict(zip(indices, given, strict=True))
    plain = unique_names(names) if names else [str(index) for index in range(n)]
    # A name that the data set has for another class would stand twice: the model's gets its number.
    taken = set(given)
    classes = tuple(
        own.get(index, name if name not in taken else f"{name} ({index})")
        for index, name in enumerate(plain)
    )
    return indices, classes


def unique_names(names: Sequence[Sequence[str]]) -> list[str]:
    """Return for each class the plainest of its names that no other class has.

    ImageNet has two classes called `crane`, and a `Cardigan` beside a `cardigan`: folders of these
    names are one on some file systems, so that case does not tell classes apart.

    >>> unique_names([("n1", "tench"), ("n2", "Crane"), ("n3", "crane")])
    ['tench', 'n2', 'n3']
    """
    count = Counter(name for known in names for name in {name.strip().lower() for name in known})
    return [
        next(
            (name for name in reversed(known) if count[name.strip().lower()] == 1),
            f"class {index}",
        )
        for index, known in enumerate(names)
    ]


def _index_of(names: Sequence[Sequence[str]]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Return the class of every name, and the classes of each name that several have."""
    classes: dict[str, list[int]] = {}
    for index, known in enumerate(names):
        for name in {name.strip().lower() for name in known}:
            classes.setdefault(name, []).append(index)
    clear = {name: indices[0] for name, indices in classes.items() if len(indices) == 1}
    return clear, {name: indices for name, indices in classes.items() if len(indices) > 1}


def match_classes(
    given: Sequence[str],
    names: Sequence[Sequence[str]] | None,
    n: int,
    *,
    what: str = "class names",
) -> list[int]:
    """Return the model's class index of each class of a data set.

    Tried in this order: names that the model's classes are known by (for ImageNet models WordNet
    ids such as `n02123045` or descriptions such as `tabby`); as many names as the model has
    classes, then in their order, the alphabetical one in which torchvision trains them; numbers 0
    to n-1.

    >>> match_classes(["7", "2"], None, 10)
    [7, 2]

    Raises:
        InputError: if none of these holds, or a name fits several classes.
    """
    index_of, ambiguous = _index_of(names or ())
    unclear = {folder: ambiguous[folder.lower()] for folder in given if folder.lower() in ambiguous}
    if unclear:
        raise InputError(
            f"{what} {unclear} each fit several classes of the model (the indices are given): "
            "name them by the class's WordNet id or full description"
        )
    # Names go first: as many folders as classes may be in another order than the model's.
    if all(folder.lower() in index_of for folder in given):
        return [index_of[folder.lower()] for folder in given]
    if len(given) == n:
        return list(range(n))
    numbers = {folder for folder in given if folder.isascii() and folder.isdigit()}
    if all(folder in numbers and int(folder) < n for folder in given):
        return [int(folder) for folder in given]
    hint = "" if what != "class names" else CLASSES_HINT
    # Numbers too large are named only if nothing else is wrong.
    unknown = [folder for folder in given if folder.lower() not in index_of]
    unknown = [folder for folder in unknown if folder not in numbers] or unknown
    raise InputError(
        f"{what} {unknown[:5]} match no class of the model, which has {n}: name each after a class "
        "(for ImageNet a WordNet id or a description), after its index, or have one for each of "
        f"the {n} classes in alphabetical order{hint}"
    )
