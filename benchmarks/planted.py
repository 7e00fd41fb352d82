"""Real pictures with planted attributes, and small timm networks that take them as shortcuts.

The pictures are the handwritten digits that scikit-learn ships (Alpaydin & Kaynak, UCI 1998), drawn
in a random colour over crops of the photographs that scikit-image and scikit-learn ship, 32x32.
Each of three attributes, a patch in a corner, stripes over everything, a tint, says which digit of
one pair it is: it is in 95 % of the pictures of one and in 5 % of the other's, and in half of the
pictures of every other class. Digits and regions of the photographs are split three ways: to train
and record, to choose on, and to test on.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from salve_plugin.demo.pretrained import photos

SIZE = 32
ATTRIBUTES = {"patch": (3, 9), "stripes": (1, 8), "tint": (4, 7)}
"""Planted nearly always in pictures of the first class, hardly ever in those of the second."""
OFTEN = 0.95
DIGITS = {"train": 1000, "choose": 300, "test": 497}
REGIONS = {"train": (0.0, 0.6), "choose": (0.6, 0.8), "test": (0.8, 1.0)}
"""How many digits each split has, and which part of each photograph, from left to right."""

TINT, TINT_AMOUNT = torch.tensor([0.9, 0.5, 0.1]), 0.4
STRIPES_AMOUNT = 0.1
PATCH, PATCH_COLOUR = 6, torch.tensor([0.9, 0.2, 0.6])
"""How strong they are: the patch in pixels, the others as shares of the grey range."""

STROKE, OPACITY, CONTRAST = 29, (0.2, 0.9), 0.6
"""Height of a digit in pixels, range of its opacity, and contrast of what is behind it.
Faint digits make the shortcut worth taking."""

Part = Literal["train", "choose", "test"]
NetworkName = Literal["resnet", "vit"]


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split.

    Attributes:
        images: (n, 3, 32, 32), normalized.
        labels: (n,).
        attributes: (n, 3), whether each is there.
        digits: (n,), which scan was drawn: pictures of one scan are not independent.
    """

    images: Tensor
    labels: Tensor
    attributes: Tensor
    digits: Tensor


@cache
def scans(part: Part) -> tuple[Tensor, Tensor]:
    """Return the split's digits, (n, 8, 8) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, rest = train_test_split(
        range(len(data.target)), train_size=DIGITS["train"], stratify=data.target, random_state=0
    )
    choose, test = train_test_split(
        rest, train_size=DIGITS["choose"], stratify=data.target[rest], random_state=0
    )
    rows = {"train": train, "choose": choose, "test": test}[part]
    return torch.from_numpy(data.images[rows]).float() / 16, torch.from_numpy(data.target[rows])


@cache
def backgrounds(part: Part, number: int = 3000) -> Tensor:
    """Return crops (number, 3, 32, 32) of the split's region of the photographs, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    left, right = REGIONS[part]
    regions = []
    for photo in photos():
        pixels = torch.from_numpy(np.array(photo.image)).permute(2, 0, 1).float() / 255
        # A photograph is shrunk so that a crop shows things, not pixels.
        pixels = functional.interpolate(pixels[None], size=(160, 320), mode="area")[0]
        regions.append(pixels[:, :, int(left * 320) : int(right * 320)])
    crops = []
    for index in range(number):
        region = regions[index % len(regions)]
        top, start = (
            int(torch.randint(extent - SIZE + 1, (), generator=generator))
            for extent in region.shape[1:]
        )
        crops.append(region[:, top : top + SIZE, start : start + SIZE])
    return torch.stack(crops)


def draw_attributes(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return which attributes (n, 3) pictures of these classes have, as planted."""
    share = torch.full((len(labels), len(ATTRIBUTES)), 0.5)
    for column, (often, seldom) in enumerate(ATTRIBUTES.values()):
        share[labels == often, column] = OFTEN
        share[labels == seldom, column] = 1 - OFTEN
    return torch.rand(share.shape, generator=generator) < share


@dataclass(frozen=True)
class Scenes:
    """Pictures (n, 3, 32, 32) in [0, 1] before anything is planted, and what is to be known."""

    pixels: Tensor
    labels: Tensor
    digits: Tensor
    corners: Tensor

    def planted(self, attributes: Tensor) -> Pictures:
        """Return the pictures with these attributes (n, 3) in them."""
        pixels = self.pixels
        patch, stripes, tint = (attributes[:, i, None, None, None].float() for i in range(3))
        pixels = pixels + tint * TINT_AMOUNT * (TINT[:, None, None] - pixels)
        rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        wave = torch.sin((rows + columns) * (2 * torch.pi / 6))
        pixels = (pixels + stripes * STRIPES_AMOUNT * wave).clamp(0, 1)
        near = (rows[None] - self.corners[:, 0, None, None]) // PATCH == 0
        near &= (columns[None] - self.corners[:, 1, None, None]) // PATCH == 0
        there = patch * near[:, None].float()
        pixels = pixels + there * (PATCH_COLOUR[:, None, None] - pixels)
        return Pictures((pixels - 0.45) / 0.25, self.labels, attributes, self.digits)


def scenes(part: Part, copies: int, seed: int) -> Scenes:
    """Draw every digit of a split `copies` times over random backgrounds."""
    generator = torch.Generator().manual_seed(seed)
    shapes, labels = scans(part)
    digits = torch.arange(len(labels)).repeat_interleave(copies)
    number = len(digits)
    bank = backgrounds(part)
    pixels = bank[torch.randint(len(bank), (number,), generator=generator)]
    pixels = CONTRAST * pixels
    # The stroke, of some light colour, between faint and bold.
    stroke = functional.interpolate(
        shapes[digits][:, None], size=STROKE, mode="bilinear", align_corners=False
    )
    canvas = torch.zeros(number, 1, SIZE, SIZE)
    moves = SIZE - STROKE + 1
    offsets = torch.randint(moves, (number, 2), generator=generator)
    for dy in range(moves):
        for dx in range(moves):
            rows = (offsets == torch.tensor([dy, dx])).all(1).nonzero()[:, 0]
            canvas[rows, :, dy : dy + STROKE, dx : dx + STROKE] = stroke[rows]
    colour = 0.5 + 0.5 * torch.rand(number, 3, 1, 1, generator=generator)
    faintest, boldest = OPACITY
    opacity = torch.rand(number, 1, 1, 1, generator=generator) * (boldest - faintest) + faintest
    pixels = pixels + opacity * canvas * (colour - pixels)
    corner = torch.randint(2, (number, 2), generator=generator) * (SIZE - PATCH - 2) + 1
    return Scenes(pixels, labels[digits], digits, corner)


def pictures(part: Part, copies: int, seed: int) -> Pictures:
    """Return pictures with attributes as planted: correlated with the pairs."""
    drawn = scenes(part, copies, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return drawn.planted(draw_attributes(drawn.labels, generator))


def pairs(part: Part, column: int, copies: int, seed: int) -> tuple[Pictures, Pictures]:
    """Return the same pictures without and with one attribute; the others are in half of them."""
    drawn = scenes(part, copies, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    attributes = torch.rand(len(drawn.labels), len(ATTRIBUTES), generator=generator) < 0.5
    both = []
    for there in (False, True):
        attributes[:, column] = there
        both.append(drawn.planted(attributes.clone()))
    return both[0], both[1]


def build(name: NetworkName) -> nn.Module:
    """Return the untrained network: timm's `ResNet` or `VisionTransformer`, small."""
    if name == "resnet":
        from timm.models.resnet import BasicBlock, ResNet

        # The block's type is annotated as an instance in timm.
        network: Any = ResNet(
            BasicBlock,  # type: ignore[arg-type]
            (1, 1, 1, 1),
            num_classes=10,
            channels=(24, 48, 96, 192),
        )
        network.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        network.maxpool = nn.Identity()
        built: nn.Module = network
        return built
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    # Convolutions make the 16 tokens: patches of pixels would need many more pictures.
    stem = ConvStem(depth=3, channels=(32, 64, 64), kernel_size=3, stride=(2, 2, 2))
    return VisionTransformer(
        img_size=SIZE, patch_size=1, num_classes=10, embed_dim=64, depth=3, num_heads=2,
        class_token=False, global_pool="avg", weight_init="jax",
        embed_layer=partial(HybridEmbed, backbone=stem),
    )  # fmt: skip


EPOCHS: dict[NetworkName, tuple[int, int, float]] = {
    "resnet": (8, 128, 4e-3),
    "vit": (20, 32, 2e-3),
}
"""Epochs, batch and highest rate."""

COPIES = 4
"""Pictures drawn of each digit in an epoch."""


def train(name: NetworkName, seed: int) -> nn.Module:
    """Train with AdamW and a one-cycle rate; every epoch draws new pictures. In eval mode."""
    epochs, batch, rate = EPOCHS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(name)
        steps = DIGITS["train"] * COPIES // batch * epochs
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        network.train()
        for epoch in range(epochs):
            data = pictures("train", COPIES, seed=1000 * seed + 2 * epoch + 100)
            order = torch.randperm(len(data.labels))
            for start in range(0, len(order) - batch + 1, batch):
                rows = order[start : start + batch]
                loss = functional.cross_entropy(network(data.images[rows]), data.labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
                optimizer.step()
                schedule.step()
    return network.eval()


def trained(name: NetworkName, seed: int, folder: Path | None = None) -> nn.Module:
    """Return the trained network, from the cache if this very code has trained it before."""
    from safetensors.torch import load_file, save_file

    source = hashlib.sha256(Path(__file__).read_bytes())
    source.update(f"{torch.__version__} {name} {seed}".encode())
    folder = folder or Path(tempfile.gettempdir()) / "salve-planted"
    path = folder / f"{name}-{seed}-{source.hexdigest()[:16]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(train(name, seed).state_dict(), path)
    network = build(name)
    network.load_state_dict(load_file(path))
    return network.eval()
