"""What `paper.py` runs on: a network with its images in two parts, by the names of its options.

A model is `digits-resnet`, `digits-vit` (the demo's, trained here in seconds unless there is a
checkpoint) or any timm name. Data are a folder (one subfolder a class, or `train/` and `val/` with
those) or `torchvision:NAME`.
"""

import inspect
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import salve_plugin as salve
from salve_plugin.cli.images import ImageTree
from salve_plugin.demo import digits
from salve_plugin.errors import InputError, ReadError
from salve_timm.create import create_model, imagenet_names, transform_of

Labelled = Dataset[tuple[Tensor, int]]

LOOPS = {"with a closed loop": ("0", "6", "8", "9"), "without": ("1", "2", "3", "5", "7")}
"""Superclasses of digits, a stand-in chosen before anything was measured; 4 has both ways."""


@dataclass(frozen=True)
class Source:
    """A network and its images.

    Attributes:
        name: of the model, as it was asked for.
        network: in eval mode.
        train: images that dictionaries are learned on and strengths chosen on, with labels.
        test: images that everything is judged on.
        classes: names by label; one for each output of the network.
        superclass: index of each class's superclass, -1 for a class without one; None if the data
            have none.
    """

    name: str
    network: nn.Module
    train: Labelled
    test: Labelled
    classes: tuple[str, ...]
    superclass: tuple[int, ...] | None

    def loader(self, part: Labelled, size: int = 64) -> DataLoader[tuple[Tensor, int]]:
        """Return batches in the data's order."""
        return DataLoader(part, batch_size=size)

    def test_images(self) -> "Images":
        """Return the test images by index, each read when it is asked for."""
        return Images(self.test)


class Images(Sequence[Tensor]):
    """The images of a data set without their labels."""

    def __init__(self, data: Labelled) -> None:
        """Wrap the data set."""
        self._data = data

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._data)  # type: ignore[arg-type] # map-style, as all here

    def __getitem__(self, index: Any) -> Any:
        """Return one image (channels, height, width)."""
        return self._data[index][0]


class Converted(Dataset[tuple[Tensor, int]]):
    """A torchvision data set through the model's own preprocessing."""

    def __init__(self, data: Any, transform: Callable[[Any], Tensor]) -> None:
        """Wrap a data set of (PIL image, label)."""
        self.data, self._transform = data, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image as the model takes it, and its label."""
        image, label = self.data[index]
        return self._transform(image.convert("RGB")), int(label)


def open_source(
    model: str, data: str | None, *, root: Path | None = None, checkpoint: Path | None = None,
    num_classes: int | None = None, groups: Path | None = None, per_class: int | None = None,
    fit_head: bool = False, download: bool = False, seed: int = 0,
) -> Source:  # fmt: skip
    """Open a model and its images, see the module.

    Args:
        model: name.
        data: folder, or `torchvision:NAME`; None for the digits networks.
        root: of torchvision's data.
        checkpoint: state dict of the model instead of timm's weights.
        num_classes: size of the checkpoint's classifier.
        groups: JSON file of superclasses, {"superclass": ["class", ...]}.
        per_class: at most so many images of each class in each part.
        fit_head: give a timm model a new classifier, fitted on the training part.
        download: let torchvision download the data.
        seed: of the digits networks' training and of the new classifier's start.

    Raises:
        InputError: if model and data do not fit each other.
        ReadError: if data or weights cannot be read.
    """
    if model.startswith("digits-"):
        source = _digits(model, checkpoint, seed)
    elif data is None:
        raise InputError(f"--model {model} needs --data: a folder or torchvision:NAME")
    else:
        path = None if checkpoint is None else str(checkpoint)
        network: Any = create_model(model, checkpoint=path, num_classes=num_classes)
        if fit_head:
            torch.manual_seed(seed)
            network.reset_classifier(_n_classes(data, root, download))
        source = _opened(model, network, data, root, download, fit_head)
    if per_class is not None:
        train, test = (_first_of_each(part, per_class) for part in (source.train, source.test))
        source = Source(source.name, source.network, train, test, source.classes, source.superclass)
    if groups is not None:
        named = json.loads(groups.read_text())
        superclass = superclasses(source.classes, list(named.values()))
        source = Source(
            source.name, source.network, source.train, source.test, source.classes, superclass
        )
    return source


def superclasses(classes: Sequence[str], groups: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Return the index of each class's group, -1 for a class that is in none.

    Raises:
        InputError: if a group names a class that does not exist.
    """
    unknown = {name for group in groups for name in group} - set(classes)
    if unknown:
        raise InputError(
            f"superclasses name {sorted(unknown)[:5]}, which are no classes; there are "
            f"{list(classes)[:10]} and so on"
        )
    of = {name: index for index, group in enumerate(groups) for name in group}
    return tuple(of.get(name, -1) for name in classes)


def _digits(model: str, checkpoint: Path | None, seed: int) -> Source:
    name = model.removeprefix("digits-")
    if name not in digits.NETWORKS:
        raise InputError(
            f"no model {model!r}; the demo's are {[f'digits-{n}' for n in digits.NETWORKS]}"
        )
    train, test = digits.load_digits()
    network = (
        digits.train(name, train, seed=seed)
        if checkpoint is None
        else digits.load(name, checkpoint)
    )
    groups = superclasses(digits.CLASSES, list(LOOPS.values()))
    parts = [_Plain(digits.Digits(split)) for split in (train, test)]
    return Source(model, network, parts[0], parts[1], digits.CLASSES, groups)


class _Plain(Dataset[tuple[Tensor, int]]):
    """A data set whose labels are plain numbers."""

    def __init__(self, data: Dataset[tuple[Tensor, Tensor]]) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type] # map-style

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._data[index]
        return image, int(label)


def _opened(
    name: str, network: nn.Module, data: str, root: Path | None, download: bool, fit_head: bool
) -> Source:
    n, transform = int(getattr(network, "num_classes", 0)), transform_of(network)
    superclass: tuple[int, ...] | None = None
    train: Labelled
    test: Labelled
    if data.startswith("torchvision:"):
        raw = [_torchvision(data, root, part, download) for part in (True, False)]
        classes = _names(raw[0])
        if len(classes) != n:
            raise InputError(
                f"{name} has {n} classes and {data} {len(classes)}: give a --checkpoint that was "
                "trained on them with --num-classes, or --fit-head"
            )
        train, test = (Converted(part, transform) for part in raw)
        superclass = _cifar100_superclasses(raw[0])
    else:
        names = None if fit_head else imagenet_names(network)
        trees = [ImageTree(path, transform, names=names, n=n) for path in _parts(Path(data))]
        classes = trees[0].classes
        train, test = trees[0], trees[-1]
        if len(trees) == 1:
            # Sorted by class, so that every second image is half of each class.
            train, test = (Subset(trees[0], range(at, len(trees[0]), 2)) for at in (0, 1))
    return Source(name, network, train, test, classes, superclass)


def _parts(folder: Path) -> list[Path]:
    """Return the folders of the training and of the test images, or the one that has both."""
    for other in ("val", "test"):
        if (folder / "train").is_dir() and (folder / other).is_dir():
            return [folder / "train", folder / other]
    return [folder]


def _n_classes(data: str, root: Path | None, download: bool) -> int:
    if data.startswith("torchvision:"):
        return len(_names(_torchvision(data, root, True, download)))
    folder = _parts(Path(data))[0]
    if not folder.is_dir():
        raise ReadError(f"{folder} is not a folder; expected one subfolder a class")
    return sum(entry.is_dir() for entry in folder.iterdir())


def _torchvision(data: str, root: Path | None, train: bool, download: bool) -> Any:
    """Return the training or the test part, whatever the data set calls them."""
    from torchvision import datasets

    name = data.removeprefix("torchvision:")
    kind: Any = getattr(datasets, name, None)
    if kind is None or root is None:
        raise InputError(
            f"{data} with --root {root}: give the name of a data set of torchvision.datasets, "
            "such as CIFAR100 or Imagenette, and the folder that it is in"
        )
    options = inspect.signature(kind).parameters
    extra: dict[str, Any] = {"download": True} if download and "download" in options else {}
    if "train" in options:
        return kind(root, train=train, **extra)
    for part in ("train",) if train else ("val", "test"):
        try:
            return kind(root, split=part, **extra)
        except ValueError as error:  # a split of another name
            refused = error
    raise InputError(f"{data} has no part {'train' if train else 'val or test'}: {refused}")


def _names(data: Any) -> tuple[str, ...]:
    """Return one name a class; torchvision gives several where a class has synonyms."""
    known = getattr(data, "classes", None)
    if known is None:
        return tuple(str(label) for label in range(int(_labels(data).max()) + 1))
    return tuple(name if isinstance(name, str) else name[0] for name in known)


def _labels(data: Any) -> Tensor:
    if isinstance(data, Subset):
        return _labels(data.dataset)[list(data.indices)]
    if isinstance(data, Converted):
        return _labels(data.data)
    if isinstance(data, ImageTree):
        return torch.tensor([label for _, label in data.samples])
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(data, attribute):
            return torch.as_tensor(getattr(data, attribute))
    return torch.tensor([int(data[index][1]) for index in range(len(data))])


def _first_of_each(data: Labelled, most: int) -> Labelled:
    labels = _labels(data)
    kept = [(labels == label).nonzero()[:most, 0] for label in sorted(set(labels.tolist()))]
    return Subset(data, torch.cat(kept).sort().values.tolist())


def _cifar100_superclasses(data: Any) -> tuple[int, ...] | None:
    """Return CIFAR-100's own superclasses, which torchvision leaves in the file; None elsewhere."""
    from torchvision.datasets import CIFAR100

    if not isinstance(data, CIFAR100):
        return None
    with (Path(data.root) / data.base_folder / "train").open("rb") as file:
        raw = pickle.load(file, encoding="latin1")  # torchvision has checked its digest
    of = dict(zip(raw["fine_labels"], raw["coarse_labels"], strict=True))
    return tuple(of[label] for label in range(len(of)))


def fitted_head(source: Source, acts: salve.Activations) -> None:
    """Fit the network's classifier on recorded inputs, for good."""
    hooked = salve.attach(source.network)
    salve.refit_head(hooked, acts).apply_(source.network)
    salve.forget_(source.network)
