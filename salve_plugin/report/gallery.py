"""Pictures of recorded images, each once, and where in them a latent comes from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import AttributionError
from salve_plugin.hooks import HookedModel
from salve_plugin.report.scripts import data_url
from salve_plugin.validate.evidence.recorded_images import RecordedImages
from salve_plugin.validate.latents import latent_index
from salve_plugin.validate.maximization import maximize
from salve_plugin.validate.pictures import png_bytes, stretched, to_picture

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128
"""Longer side of a thumbnail; smaller images stay as they are."""
MADE_SIDE = 256
"""The same of images that were made: few, and looked at one by one."""
IMAGES_A_FILE = 64
_QUALITY = 80
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Images:
    """The recorded images, read again one by one where they are needed.

    Attributes:
        recorded: the data set, compared with the recording image by image.
        files: names of the images' files, if they have any.
        shown: those whose thumbnails are shown, each once, in the order in which they lie together.
    """

    recorded: RecordedImages
    files: Sequence[str] | None
    shown: Sequence[int] = ()
    _thumbnails: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, hooked: HookedModel, acts: Activations, data_set: Any) -> "Images":
        """Take a data set that should be the recorded one.

        Raises:
            InputError: if it has no length or another one than the recording.
        """
        return cls(RecordedImages(hooked, acts, data_set), _files(data_set))

    def read(self, index: int) -> Float[Tensor, "channels height width"]:
        """Return an image as the model takes it.

        Raises:
            InputError: if its label is not the recorded one.
            ReadError: if it cannot be read.
        """
        tensor: Tensor = self.recorded.read([index])[0]
        if index not in self._thumbnails:
            self._thumbnails[index] = _thumbnail(tensor)
        return tensor

    def pages(self) -> dict[str, Mapping[str, Any]]:
        """Return the thumbnails of `shown` by key; neighbours there lie in one file.

        One file a picture would cost more to write durably than to draw.
        """
        for image in self.shown:
            if image not in self._thumbnails:
                self.read(image)
        urls = [data_url(self._thumbnails[image]) for image in self.shown]
        return {
            f"images/{start // IMAGES_A_FILE}": {"images": urls[start : start + IMAGES_A_FILE]}
            for start in range(0, len(urls), IMAGES_A_FILE)
        }


@dataclass(frozen=True, eq=False)
class Maps:
    """Grad-FAM of some latents on their top images.

    Attributes:
        grids: by latent, (top, h, w); empty where there are none.
        size: height and width of the images that they lie over.
        missing: why there are none.
    """

    grids: Mapping[int, Float[Tensor, "top h w"]]
    size: tuple[int, int] = (0, 0)
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
    from salve_plugin.validate.all_maps import grad_fam_maps
    from salve_plugin.validate.grad_fam import LayerGradFam  # imports captum

    # An image that several latents are strongest on goes through the model once; images with as
    # many of them go together, since all in a batch are asked for as many maps.
    wanted: dict[int, list[tuple[int, int]]] = {}
    for latent in latents:
        for place, image in enumerate(top_images[latent].tolist()):
            wanted.setdefault(image, []).append((latent, place))
    order = sorted(wanted, key=lambda image: -len(wanted[image]))
    grids: dict[int, Tensor] = {}
    size = (0, 0)
    try:
        fam = LayerGradFam.of(hooked, dictionary)
        for batch in _batched(order):
            most = len(wanted[batch[0]])
            own = [[latent for latent, _ in wanted[image]] for image in batch]
            # All images of a batch have as many latents: the rest is filled up with the first,
            # whose further maps nobody reads.
            index = torch.tensor([each + each[:1] * (most - len(each)) for each in own])
            read = [images.read(image) for image in batch]
            sizes = {(each.shape[-2], each.shape[-1]) for each in read} | (
                {size} if grids else set()
            )
            if len(sizes) > 1:
                raise AttributionError(
                    f"images of the sizes {sorted(sizes)[:4]} have maps of several shapes; record "
                    "images of one size"
                )
            inputs = torch.stack(read)
            (size,) = sizes
            heats = grad_fam_maps(fam, inputs, index).float().cpu()
            for image, heat in zip(batch, heats, strict=True):
                for at, (latent, place) in enumerate(wanted[image]):
                    empty = heat.new_zeros(top_images.shape[1], *heat.shape[1:])
                    grids.setdefault(latent, empty)[place] = heat[at]
    except AttributionError as error:
        return Maps({}, missing=f"no maps: {error}")
    return Maps({latent: grids[latent] for latent in latents if latent in grids}, size)


def maximizations(
    hooked: HookedModel, dictionary: Dictionary, latents: Sequence[int], signs: Tensor
) -> dict[int, Mapping[str, Any]]:
    """Return for each of the latents an image that drives it, beside what random images reach.

    Args:
        hooked: the attached model.
        dictionary: of it.
        latents: which.
        signs: of the largest code of every latent: -1 where it is strongest below zero.

    Raises:
        SalveError: as `maximize`.
    """
    made: dict[int, Mapping[str, Any]] = {}
    for latent in latents:
        own = signs[latent_index(latent, 1, len(signs))]
        sign: Literal[1, -1] = -1 if bool(own < 0) else 1
        best = maximize(hooked, dictionary, latent, sign=sign)
        made[latent] = {
            "source": data_url(_jpeg(to_picture(best.image), MADE_SIDE)),
            "value": best.activation, "sign": best.sign, "steps": len(best.activations),
            "noise": float(best.noise.mean()), "spread": float(best.noise.std()),
        }  # fmt: skip
    return made


def _files(data_set: Any) -> list[str] | None:
    """Return the names of the files of an image folder; None of what is none."""
    samples = getattr(data_set, "samples", None)
    # Data sets of one's own keep all sorts of things under this name.
    listed = samples if isinstance(samples, list | tuple) else ()
    paths = [sample[0] for sample in listed if isinstance(sample, list | tuple) and sample]
    named = [Path(path).name for path in paths if isinstance(path, str | Path)]
    return named if len(named) == len(data_set) else None


def _batched(images: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH]


def _thumbnail(image: Tensor) -> bytes:
    picture: Image = stretched(image)
    if max(picture.size) <= SIDE // 2:  # a JPEG of so few pixels shows its blocks
        return png_bytes(picture)
    return _jpeg(picture, SIDE)


def _jpeg(picture: "Image", side: int) -> bytes:
    picture.thumbnail((side, side))
    stream = BytesIO()
    picture.convert("RGB").save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()
