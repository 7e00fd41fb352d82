"""Labelled images from a folder with one subfolder a class (torchvision's ImageFolder layout)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from salve_plugin.errors import InputError, ReadError

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], Tensor]


class ImageTree(Dataset[tuple[Tensor, int]]):
    """The images below a folder, labelled with the model's class indices.

    Attributes:
        samples: (path, class index), in a fixed order.
        classes: a name for every class of the model, by index.
    """

    def __init__(
        self, folder: Path, transform: Transform, *, names: Sequence[Sequence[str]] | None, n: int
    ) -> None:
        """List the images; none is opened yet.

        Args:
            folder: with one subfolder a class.
            transform: the model's preprocessing.
            names: for each class of the model, the names that it is known by, if any are.
            n: number of classes of the model.

        Raises:
            ReadError: if the folder has no images in subfolders.
            InputError: if the subfolders cannot be matched with the model's classes.
        """
        from torchvision.datasets import ImageFolder

        try:
            tree = ImageFolder(str(folder))
        except (FileNotFoundError, OSError) as error:
            raise ReadError(
                f"{folder} is not an image folder ({error}); expected one subfolder a class with "
                "images in it"
            ) from error
        indices = match_classes(tree.classes, names, n)
        self._transform = transform
        self.samples = [(Path(path), indices[label]) for path, label in tree.samples]
        own = dict(zip(indices, tree.classes, strict=True))
        plain = unique_names(names) if names else [str(index) for index in range(n)]
        taken = set(tree.classes)
        self.classes = tuple(
            own.get(index, name if name not in taken else f"{name} ({index})")
            for index, name in enumerate(plain)
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the preprocessed image and its class index.

        Raises:
            ReadError: naming the file, if it is no readable image.
        """
        path, label = self.samples[index]
        return self._transform(open_image(path)), label

    def batches(self, size: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Return a loader over the images in their fixed order."""
        return DataLoader(self, batch_size=size, shuffle=False)


def open_image(path: Path) -> "Image":
    """Return the image as RGB.

    Raises:
        ReadError: naming the file, if it is no readable image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReadError(
            f"{path} cannot be read as an image ({error}); repair or remove the file, then repeat "
            "the command: what is done already is kept"
        ) from error


def unique_names(names: Sequence[Sequence[str]]) -> list[str]:
    """Return for each class the plainest of its names that no other class has.

    ImageNet has two classes called `crane` and two called `maillot`.

    >>> unique_names([("n1", "tench"), ("n2", "crane"), ("n3", "crane")])
    ['tench', 'n2', 'n3']
    """
    count = Counter(name for known in names for name in set(known))
    return [
        next((name for name in reversed(known) if count[name] == 1), f"class {index}")
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
    folders: Sequence[str], names: Sequence[Sequence[str]] | None, n: int
) -> list[int]:
    """Return the model's class index of each subfolder.

    Tried in this order: names that the model's classes are known by (for ImageNet models WordNet
    ids such as `n02123045` or descriptions such as `tabby`); as many subfolders as classes, then
    in alphabetical order as torchvision trains them; numbers 0 to n-1.

    >>> match_classes(["7", "2"], None, 10)
    [7, 2]

    Raises:
        InputError: if none of these holds, or a name fits several classes.
    """
    index_of, ambiguous = _index_of(names or ())
    unclear = {
        folder: ambiguous[folder.lower()] for folder in folders if folder.lower() in ambiguous
    }
    if unclear:
        raise InputError(
            f"subfolders {unclear} each fit several classes of the model (the indices are given): "
            "name them by the class's WordNet id or full description"
        )
    if all(folder.lower() in index_of for folder in folders):
        return [index_of[folder.lower()] for folder in folders]
    if len(folders) == n:
        return list(range(n))
    numbers = {folder for folder in folders if folder.isascii() and folder.isdigit()}
    if all(folder in numbers and int(folder) < n for folder in folders):
        return [int(folder) for folder in folders]
    # Numbers too large are named only if nothing else is wrong.
    unknown = [folder for folder in folders if folder.lower() not in index_of]
    unknown = [folder for folder in unknown if folder not in numbers] or unknown
    raise InputError(
        f"subfolders {unknown[:5]} match no class of the model, which has {n}: name each subfolder "
        "after a class (for ImageNet a WordNet id or a description), after its index, or have one "
        f"for each of the {n} classes in alphabetical order"
    )
