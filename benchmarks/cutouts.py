"""Photographs with a cut-out animal at a known place, for the localization benchmark.

The animals are stamps of the Debian package `tuxpaint-stamps-default` (GPL-2; nothing of it is
shipped here): photographs with an alpha channel, which is an exact mask. The photographs beneath
them are those that scikit-image and scikit-learn ship.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.cutout_classes import ACCEPTED
from benchmarks.watermark_pictures import COLOUR
from salve_plugin.demo.pretrained import class_names

PACKAGE = "tuxpaint-stamps-default"
STAMPS = Path("/usr/share/tuxpaint/stamps")
"""Where that package installs them."""

SIDE = 448
"""Of a picture as it is composed; the network's own 224 px are made of it by averaging."""

OBJECT = (0.45, 0.7)
"""Longer side of the animal, as a share of the picture's."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """One picture.

    Attributes:
        image: in [0, 1], (3, 448, 448).
        mask: where the animal is, (448, 448).
        stamp: number of the animal.
    """

    image: Tensor
    mask: Tensor
    stamp: int


@dataclass(frozen=True)
class Stamps:
    """The animals, and which of them are of one class.

    Attributes:
        folder: with the stamps.
    """

    folder: Path = STAMPS

    def __post_init__(self) -> None:
        """Stop with a sentence where the pictures are not there."""
        missing = [name for name in ACCEPTED if not (self.folder / f"{name}.png").is_file()]
        if missing:
            raise SystemExit(
                f"{len(missing)} of the {len(ACCEPTED)} cut-out animals are not below "
                f"{self.folder}, {missing[0]}.png first; install the Debian package {PACKAGE} "
                "(apt-get install, or apt-get download and dpkg-deb -x), and name another folder "
                "with --stamps .../usr/share/tuxpaint/stamps"
            )

    @cached_property
    def accepted(self) -> list[list[int]]:
        """The ImageNet classes that are right for each stamp."""
        index: dict[str, list[int]] = {}
        for number, name in enumerate(class_names()):
            index.setdefault(name, []).append(number)
        return [
            [number for name in names.split("|") for number in index[name]]
            for names in ACCEPTED.values()
        ]

    @cached_property
    def group(self) -> list[int]:
        """The class of each stamp: those that share an accepted ImageNet class are of one."""
        group = list(range(len(self.accepted)))
        for one, classes in enumerate(self.accepted):
            for other in range(one):
                if group[one] != group[other] and set(classes) & set(self.accepted[other]):
                    old, new = group[one], group[other]
                    group = [new if each == old else each for each in group]
        return group

    def fold(self, folds: int) -> list[int | None]:
        """Return the fold in which a stamp is tested; None if it is the only one of its class."""
        result: list[int | None] = []
        for number, group in enumerate(self.group):
            place = self.group[:number].count(group)
            result.append(place % folds if self.group.count(group) > 1 else None)
        return result

    def pasted(self, stamp: int, photograph: Image.Image, seed: int) -> Cutout:
        """Return the animal at a random place and size on a random part of a photograph."""
        random = np.random.default_rng((stamp, seed))
        canvas = _square(photograph, random)
        name = list(ACCEPTED)[stamp]
        with Image.open(self.folder / f"{name}.png") as picture:
            animal = picture.convert("RGBA")
        animal = animal.crop(animal.getchannel("A").getbbox())
        scale = random.uniform(*OBJECT) * SIDE / max(animal.size)
        size = [max(1, round(scale * side)) for side in animal.size]
        animal = animal.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        left, top = (int(random.integers(0, SIDE - side + 1)) for side in size)
        canvas.paste(animal, (left, top), animal)
        alpha = Image.new("L", (SIDE, SIDE))
        alpha.paste(animal.getchannel("A"), (left, top))
        pixels = torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255).movedim(2, 0)
        mask = torch.from_numpy(np.asarray(alpha) > 127)
        return Cutout(pixels.contiguous(), mask, stamp)


def photographs(names: Sequence[str] = COLOUR) -> list[Image.Image]:
    """Return packaged colour photographs."""
    folders = [
        Path(str(resources.files("skimage.data"))),
        Path(str(resources.files("sklearn.datasets"))) / "images",
    ]
    paths = [folder / name for name in names for folder in folders if (folder / name).is_file()]
    return [Image.open(path).convert("RGB") for path in paths]


def _square(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return a random square part, 0.6 to all of the shorter side."""
    side = round(random.uniform(0.6, 1.0) * min(photograph.size))
    left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
    part = photograph.crop((left, top, left + side, top + side))
    return part.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
