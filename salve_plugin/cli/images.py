"""Labelled images from a folder with one subfolder a class (torchvision's ImageFolder layout)."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from salve_plugin.discover.recording.labels import model_classes
from salve_plugin.errors import ReadError

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
        indices, self.classes = model_classes(tree.classes, names, n, what="subfolders")
        self._transform = transform
        self.samples = [(Path(path), indices[label]) for path, label in tree.samples]

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
