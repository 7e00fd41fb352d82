"""Labelled images from a folder with one subfolder a class (torchvision's ImageFolder layout)."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from salve_plugin.discover.recording.labels import model_classes
from salve_plugin.errors import InputError, ReadError
from salve_plugin.store.checkpoint import in_short

if TYPE_CHECKING:
    from PIL.Image import Image

WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""PIL's modes that its conversion to RGB would clip at 255."""
NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Forms that PIL knows but cannot show by itself, or not as a picture."""

PHOTOGRAPHS = frozenset({".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef"})
"""Photographs that PIL may not open: passing over them without a word would lose half a camera."""

Transform = Callable[["Image"], Tensor]


class ImageTree(Dataset[tuple[Tensor, int]]):
    """The images below a folder, labelled with the model's class indices.

    Attributes:
        samples: (path, class index), in a fixed order.
        classes: a name for every class of the model, by index.
    """

    def __init__(
        self,
        folder: Path,
        transform: Transform,
        *,
        names: Sequence[Sequence[str]] | None,
        n: int,
        left_out: Collection[str] = (),
    ) -> None:
        """List the images; none is opened yet.

        Args:
            folder: with one subfolder a class.
            transform: the model's preprocessing.
            names: for each class of the model, the names that it is known by, if any are.
            n: number of classes of the model.
            left_out: files and empty subfolders to pass over, see `unusable`.

        Raises:
            ReadError: if the folder has no images in subfolders, or a subfolder has none.
            InputError: if the subfolders cannot be matched with the model's classes.
        """
        samples, filled, empty = _listed(folder, left_out)
        unexpected = [name for name in empty if name not in left_out]
        if unexpected or not filled:
            raise ReadError(
                f"{folder} is not an image folder: no image is in {in_short(unexpected)}; remove "
                "it, or leave such subfolders out with --skip-unreadable"
                if filled
                else f"{folder} is not an image folder: it has no images that can be read in its "
                "subfolders; expected one subfolder a class"
            )
        try:
            used = [*sorted((*filled, *empty))]
            indices, self.classes = model_classes(used, names, n, what="subfolders")
        except InputError:
            if not empty:
                raise
            used = filled  # one for each class may be there without those that are empty
            indices, self.classes = model_classes(used, names, n, what="subfolders")
        index_of = dict(zip(used, indices, strict=True))
        self._transform = transform
        self.samples = [(path, index_of[name]) for path, name in samples]

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


def unusable(folder: Path, *, progress: bool = True) -> list[str]:
    """Return the images below a folder that cannot be read, and the subfolders that have no others.

    Every image is decoded: that one is cut off shows only at its end.

    Args:
        folder: with one subfolder a class.
        progress: show a progress bar on stderr.

    Raises:
        ReadError: if the folder has no subfolders.
    """
    samples, _, _ = _listed(folder, ())
    files = unreadable([path for path, _ in samples], progress=progress)
    names = [_name(Path(path), folder) for path in files]
    _, _, empty = _listed(folder, names)
    return sorted([*names, *empty])


def unreadable(images: Sequence[Path], *, progress: bool = False) -> list[str]:
    """Return the paths of those images that cannot be read."""
    from rich.console import Console
    from rich.progress import track

    paths = []
    for path in track(images, "checking", console=Console(stderr=True), disable=not progress):
        try:
            open_image(path)
        except ReadError:
            paths.append(str(path))
    return paths


def _listed(
    folder: Path, left_out: Collection[str]
) -> tuple[list[tuple[Path, str]], list[str], list[str]]:
    """Return images with their subfolders' names, subfolders that have some, and those without."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise ReadError(
            f"{folder} is not an image folder ({error}); expected one subfolder a class with "
            "images in it"
        ) from error
    subfolders = [name for name in names if not _is_passed_over(folder, name)]
    passed = set(left_out)
    samples = [
        (path, subfolder)
        for subfolder in subfolders
        for path in _images_below(folder / subfolder)
        if _name(path, folder) not in passed
    ]
    filled = {name for _, name in samples}
    return samples, sorted(filled), sorted(set(subfolders) - filled)


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the files that are taken for images, in ImageFolder's order."""
    found = []
    for place, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not _is_passed_over(Path(place), name)]
        found.append((place, sorted(files)))
    for place, files in sorted(found):
        yield from (Path(place, name) for name in files if is_image_name(name))


def _is_passed_over(place: Path, name: str) -> bool:
    """Tell whether a folder is the system's, or a link to what it lies in.

    Such a link would give every image again, up to forty times.
    """
    here, there = os.path.realpath(place), os.path.realpath(place / name)
    return _is_hidden(name) or Path(here).is_relative_to(there)


def _is_hidden(name: str) -> bool:
    """Tell whether a file or folder is the system's: a Mac's `._photo.jpg`, a notebook's copies."""
    return name.startswith(".") or name == "__MACOSX"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def open_image(path: Path) -> "Image":
    """Return the image as RGB, upright, of 8 bits a channel.

    Values of other types (16 or 32 bits, floating point) are scaled from the least to the largest
    in the picture: they have no range of their own that a camera and a scanner would share.

    Raises:
        ReadError: naming the file, if it is no readable image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise ReadError(f"{path} is not a file; give the path of an image")
    try:
        # By a handle: what Pillow maps into memory by its path (a plain TIFF) it reads in the wrong
        # order if the picture lies on its side.
        with path.open("rb") as file, Image.open(file) as image:
            # Within the context: PIL decodes only here, and a file that is cut off raises only
            # then.
            upright = ImageOps.exif_transpose(image)
            return (_in_8_bits(upright) if upright.mode in WIDE_MODES else upright).convert("RGB")
    except Exception as error:  # every decoder has errors of its own for what it cannot decode
        reason = "its file has another form than its name says, or one that Pillow does not open"
        if not isinstance(error, UnidentifiedImageError):
            reason = str(error)
        raise ReadError(
            f"{path} cannot be read as an image ({reason}); repair it, make it a JPEG, remove it, "
            "or leave such files out with --skip-unreadable: what is done already is kept"
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

    >>> [is_image_name(name) for name in ("a/photo.GIF", "a/notes.txt", "a/._photo.gif")]
    [True, False, False]
    """
    name = Path(path)
    return not _is_hidden(name.name) and name.suffix.lower() in image_endings() | PHOTOGRAPHS
