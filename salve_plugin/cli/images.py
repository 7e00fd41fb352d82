"""Labelled images from a folder with one subfolder a class (torchvision's ImageFolder layout)."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from salve_plugin.discover.recording.labels import model_classes
from salve_plugin.errors import ReadError

if TYPE_CHECKING:
    from PIL.Image import Image

WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""PIL's modes that its conversion to RGB would clip at 255."""
NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Forms that PIL knows but cannot show by itself, or not as a picture."""

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
            tree = ImageFolder(str(folder), is_valid_file=is_image_name)
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
    """Return the image as RGB, upright, of 8 bits a channel.

    Values of other types (16 or 32 bits, floating point) are scaled from the least to the largest
    in the picture: they have no range of their own that a camera and a scanner would share.

    Raises:
        ReadError: naming the file, if it is no readable image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return (_in_8_bits(upright) if upright.mode in WIDE_MODES else upright).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReadError(
            f"{path} cannot be read as an image ({error}); repair or remove the file, then repeat "
            "the command: what is done already is kept"
        ) from error


def _in_8_bits(image: "Image") -> "Image":
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    least, most = values.min(), values.max()
    if not np.isfinite([least, most]).all():
        raise ValueError("it holds NaN or infinite values")
    # A picture of one value has no range; it is black.
    scaled = (values - least) * (255 / (most - least) if most > least else 0)
    return Image.fromarray(scaled.round().astype(np.uint8))


@cache
def image_endings() -> frozenset[str]:
    """Return the endings of files that are taken for images, in lower case, with their dots."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(
        ending for ending, form in known if form in Image.OPEN and form not in NO_PICTURES
    )


def is_image_name(path: str) -> bool:
    """Tell whether a file is taken for an image, by the end of its name.

    >>> is_image_name("a/photo.GIF"), is_image_name("a/notes.txt")
    (True, False)
    """
    return Path(path).suffix.lower() in image_endings()
