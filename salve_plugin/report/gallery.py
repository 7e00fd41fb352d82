"""Pictures of recorded images, each once, and where in them a latent comes from."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import Labels, n_outputs
from salve_plugin.errors import AttributionError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.report.scripts import data_url
from salve_plugin.validate.pictures import png_bytes, stretched

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128
"""Longer side of a thumbnail; smaller images stay as they are."""
IMAGES_A_FILE = 64
_QUALITY = 80
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Images:
    """The recorded images, read again one by one where they are needed.

    Attributes:
        data_set: indexed as it was recorded: (image, label).
        labels: of the recording, (images,).
        own: the model's class for each label of the data set; None if they are the same.
        files: names of the images' files, if they have any.
    """

    data_set: Any
    labels: Int64[Tensor, " images"]
    own: Int64[Tensor, " labels"] | None
    files: Sequence[str] | None
    _thumbnails: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, hooked: HookedModel, acts: Activations, data_set: Any) -> "Images":
        """Take a data set that should be the recorded one.

        Raises:
            InputError: if it has no length or another one than the recording.
        """
        if not isinstance(data_set, Sized) or not hasattr(data_set, "__getitem__"):
            raise InputError(
                f"images are a {type(data_set).__name__}; expected a data set with a length, whose "
                "item i is the i-th recorded (image, label), such as the loader's .dataset"
            )
        if len(data_set) != acts.n_images:
            raise InputError(
                f"images has {len(data_set)} items, the recording {acts.n_images}; pass the data "
                "set that was recorded, in its order"
            )
        samples = getattr(data_set, "samples", None)
        files = None if samples is None else [Path(str(sample[0])).name for sample in samples]
        try:
            loader: DataLoader[Any] = DataLoader(data_set)  # type: ignore[arg-type] # has __len__
            own = Labels.of(hooked.model, n_outputs(hooked), loader).indices
        except InputError:  # its names say nothing: recorded with others, or with none
            own = None
        return cls(data_set, acts.image_labels().long(), own, files)

    def read(self, index: int) -> Float[Tensor, "channels height width"]:
        """Return an image as the model takes it.

        Raises:
            InputError: if its label is not the recorded one.
        """
        image, label = self.data_set[index]
        given, recorded = int(label), int(self.labels[index])
        if self.own is not None and 0 <= given < len(self.own):
            given = int(self.own[given])
        if given != recorded:
            raise InputError(
                f"image {index} has label {given}, but {recorded} was recorded in its place; pass "
                "the data set that was recorded, in its order"
            )
        tensor: Tensor = image
        if index not in self._thumbnails:
            self._thumbnails[index] = _thumbnail(tensor)
        return tensor

    def show(self, index: int) -> None:
        """Make sure that there is a thumbnail of an image."""
        if index not in self._thumbnails:
            self.read(index)

    @property
    def shown(self) -> Sequence[int]:
        """The images that were read so far, each once, in the order in which they were."""
        return tuple(self._thumbnails)

    def pages(self) -> dict[str, Mapping[str, Any]]:
        """Return the thumbnails of `shown` by key; neighbours there lie in one file.

        One file a picture would cost more to write durably than to draw.
        """
        urls = [data_url(data) for data in self._thumbnails.values()]
        return {
            f"images/{start // IMAGES_A_FILE}": {"images": urls[start : start + IMAGES_A_FILE]}
            for start in range(0, len(urls), IMAGES_A_FILE)
        }


@dataclass(frozen=True, eq=False)
class Maps:
    """Grad-FAM of some latents on their top images.

    Attributes:
        grids: by latent, (top, h, w); empty where there are none.
        missing: why there are none.
    """

    grids: Mapping[int, Float[Tensor, "top h w"]]
    missing: str | None = None


def maps(
    hooked: HookedModel,
    dictionary: Dictionary,
    images: Images,
    top_images: Int64[Tensor, "latents top"],
    latents: Sequence[int],
) -> Maps:
    """Return the maps of the named latents; that a model has none is no error.

    Args:
        hooked: the attached model.
        dictionary: of it.
        images: recorded.
        top_images: of every latent.
        latents: which are asked for.
    """
    from salve_plugin.validate.grad_fam import LayerGradFam  # imports captum

    pairs = [(latent, int(image)) for latent in latents for image in top_images[latent]]
    try:
        fam = LayerGradFam.of(hooked, dictionary)
        heats = [
            fam.attribute(
                torch.stack([images.read(image) for _, image in batch]),
                target=[latent for latent, _ in batch],
            )[:, 0]
            for batch in _batched(pairs)
        ]
    except AttributionError as error:
        return Maps({}, f"no maps: {error}")
    if not heats:
        return Maps({})
    grids = torch.cat(heats).float().cpu()
    by_latent = grids.view(len(latents), -1, *grids.shape[1:])
    return Maps(dict(zip(latents, by_latent, strict=True)))


def _batched(pairs: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(pairs), _BATCH):
        yield pairs[start : start + _BATCH]


def _thumbnail(image: Tensor) -> bytes:
    picture: Image = stretched(image)
    if max(picture.size) <= SIDE // 2:  # a JPEG of so few pixels shows its blocks
        return png_bytes(picture)
    picture.thumbnail((SIDE, SIDE))
    stream = BytesIO()
    picture.convert("RGB").save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()
