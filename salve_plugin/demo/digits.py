"""The demo's real data and two small timm networks trained on it.

The data are the 1797 handwritten digits that scikit-learn ships (Alpaydin & Kaynak, UCI 1998;
8x8 pixels, 16 grey levels), resized to 32x32 and normalized.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

NetworkName = Literal["resnet", "vit"]
NETWORKS: tuple[NetworkName, ...] = ("resnet", "vit")
IMAGE_SIZE = 32
MEAN, STD = 0.3, 0.37
BLACK, WHITE = (0 - MEAN) / STD, (1 - MEAN) / STD
"""The normalized pixels of paper and ink."""

CLASSES = tuple(str(digit) for digit in range(10))


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """A split as a torch data set with `classes`, as torchvision's have."""

    def __init__(self, split: "Split") -> None:
        """Wrap the split."""
        self.split = split
        self.classes = list(CLASSES)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image and its label."""
        return self.split.images[index], self.split.labels[index]


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 32, 32) and labels (n,)."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) in order."""
        for start in range(0, len(self.labels), size):
            yield self.images[start : start + size], self.labels[start : start + size]

    def loader(self, size: int = 256) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader over the split, in order, that knows the class names."""
        return DataLoader(Digits(self), batch_size=size)


def load_digits(seed: int = 0) -> tuple[Split, Split]:
    """Return the train and test split (80 % and 20 %, stratified by class)."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    data = sklearn_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    images = functional.interpolate(images, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    images, labels = (images - MEAN) / STD, torch.from_numpy(data.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, stratify=data.target, random_state=seed
    )
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def build(name: NetworkName) -> nn.Module:
    """Return the untrained network: a timm `ResNet` or `VisionTransformer` of house size."""
    if name == "resnet":
        from timm.models.resnet import BasicBlock, ResNet

        widths = (16, 32, 64, 128)
        # The block's type is annotated as an instance in timm.
        network: Any = ResNet(
            BasicBlock,  # type: ignore[arg-type]
            (1, 1, 1, 1),
            num_classes=10,
            in_chans=1,
            channels=widths,
        )
        # A stem that keeps the resolution: 32 px -> a 4x4 map of 128.
        network.conv1 = nn.Conv2d(1, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
        built: nn.Module = network
        return built
    from timm.models.vision_transformer import VisionTransformer

    # timm's default initialization stalls at a low rate on 16 tokens; "jax" does not.
    return VisionTransformer(
        img_size=IMAGE_SIZE, patch_size=8, in_chans=1, num_classes=10, embed_dim=64, depth=4,
        num_heads=2, class_token=True, global_pool="token", weight_init="jax",
    )  # fmt: skip


def train(
    name: NetworkName,
    data: Split,
    *,
    seed: int = 0,
) -> nn.Module:
    """Train the network from scratch with AdamW and a one-cycle rate; return it in eval mode.

    Args:
        name: which of the two networks.
        data: the training split.
        seed: of the initialization, the order of the images and their shifts.
    """
    epochs, rate, shift = {"resnet": (8, 4e-3, 2), "vit": (24, 3e-3, 1)}[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(name)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": 0.05},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
        batch = 64
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=len(data.labels) // batch * epochs, pct_start=0.3
        )
        for _ in range(epochs):
            network.train()
            order = torch.randperm(len(data.labels))
            for start in range(0, len(order) - batch + 1, batch):
                rows = order[start : start + batch]
                images = _shifted(data.images[rows], shift)
                loss = functional.cross_entropy(network(images), data.labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
                optimizer.step()
                schedule.step()
    return network.eval()


def _shifted(images: Tensor, most: int) -> Tensor:
    """Return the batch, each half moved by one random offset of at most `most` pixels."""
    padded = functional.pad(images, [most] * 4, mode="replicate")
    halves = [
        half[:, :, dy : dy + IMAGE_SIZE, dx : dx + IMAGE_SIZE]
        for half, (dy, dx) in zip(
            padded.chunk(2), torch.randint(2 * most + 1, (2, 2)).tolist(), strict=True
        )
    ]
    return torch.cat(halves)


@torch.no_grad()
def accuracy(network: nn.Module, data: Split) -> float:
    """Return the share of images that the network labels rightly."""
    right = sum(
        int((network(images).argmax(-1) == labels).sum()) for images, labels in data.batches()
    )
    return right / len(data.labels)


def load(name: NetworkName, weights: Path) -> nn.Module:
    """Return the network with the weights of a safetensors state dict, in eval mode."""
    from safetensors.torch import load_file

    network = build(name)
    network.load_state_dict(load_file(weights))
    return network.eval()


def main() -> None:
    """Train both networks and save their state dicts: `python -m salve_plugin.demo.digits DIR`."""
    import sys

    from safetensors.torch import save_file

    train_split, test_split = load_digits()
    folder = Path(sys.argv[1])
    for name in NETWORKS:
        network = train(name, train_split)
        save_file(network.state_dict(), folder / f"digits_{name}.safetensors", {"format": "pt"})
        sys.stdout.write(f"{name}: test accuracy {accuracy(network, test_split):.4f}\n")


if __name__ == "__main__":
    main()
