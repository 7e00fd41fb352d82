"""Crops of packaged photographs with and without text across them, for the watermark benchmark.

The photographs are those that scikit-image and scikit-learn ship, the text is in `watermarks/`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

OVERLAYS = Path(__file__).parent / "watermarks"
OPACITY = 0.35
"""At which the shortcut is as strong as reported (2.4); chosen before any edit was tried."""

COLOUR = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg", "china.jpg", "flower.jpg",
)  # fmt: skip
OTHERS = (
    "brick.png", "coins.png", "grass.png", "gravel.png", "camera.png", "clock_motion.png",
    "moon.png", "ihc.png", "page.png", "cell.png",
)  # fmt: skip
"""Grey photographs and microscope pictures: of other kinds, so that an edit meets them too."""

CROPS = 12
"""Of a colour photograph; of the others half as many."""


@dataclass(frozen=True)
class Pictures:
    """Crops of photographs.

    Attributes:
        images: in [0, 1], (crops, 3, 224, 224).
        photograph: which photograph each is a crop of, (crops,); the others follow the colour ones.
    """

    images: Tensor
    photograph: Tensor

    @classmethod
    def packaged(cls) -> "Pictures":
        """Return crops of what scikit-image and scikit-learn ship."""
        folders = [
            Path(str(resources.files("skimage.data"))),
            Path(str(resources.files("sklearn.datasets"))) / "images",
        ]
        parts = []
        for seed, name in enumerate((*COLOUR, *OTHERS)):
            (path,) = (folder / name for folder in folders if (folder / name).is_file())
            with Image.open(path) as picture:
                count = CROPS if name in COLOUR else CROPS // 2
                parts.append(crops(picture.convert("RGB"), seed, count))
        photograph = [torch.full((len(part),), index) for index, part in enumerate(parts)]
        return cls(torch.cat(parts), torch.cat(photograph))

    @property
    def colour(self) -> Tensor:
        """Whether each crop is of a colour photograph, (crops,)."""
        return self.photograph < len(COLOUR)


def crops(picture: Image.Image, seed: int, count: int) -> Tensor:
    """Return random crops (0.7 of the area or more) in [0, 1], half of them mirrored."""
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms import functional as pictures

    views = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in range(count):
            box = RandomResizedCrop.get_params(picture, scale=[0.7, 1.0], ratio=[0.8, 1.25])
            view = pictures.crop(picture, *box).resize((224, 224), Image.Resampling.BICUBIC)
            views.append(pictures.to_tensor(pictures.hflip(view) if index % 4 > 1 else view))
    return torch.stack(views)


def marked(images: Tensor, overlay: str) -> Tensor:
    """Return images in [0, 1] with a white, half transparent text across their middle."""
    with Image.open(OVERLAYS / f"{overlay}.png") as mask:
        ink = OPACITY * torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)
    height, width = ink.shape
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    result = images.clone()
    part = result[..., top : top + height, left : left + width]
    part.copy_(part * (1 - ink) + ink)
    return result


def batches(images: Tensor, size: int = 36) -> Iterator[Tensor]:
    """Yield the images a few at a time."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield part.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images in [0, 1]; the network takes -1 to 1."""
    return torch.cat([network(2 * part - 1) for part in batches(images)])


def same(logits: Tensor, others: Tensor) -> float:
    """Return the share of images with the same first class."""
    return float((logits.argmax(1) == others.argmax(1)).float().mean())
