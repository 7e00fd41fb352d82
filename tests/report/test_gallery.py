"""Maps of galleries, where images are not alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import salve_plugin as salve


class Mixed(Dataset[tuple[Tensor, int]]):
    """Every second image is wider."""

    samples: Any = None

    def __len__(self) -> int:
        """Return the number of images."""
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        random = torch.Generator().manual_seed(index)
        return torch.rand(1, 8, 8 + 4 * (index % 2), generator=random), index % 3


class Net(nn.Module):
    """Takes images of any size."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 6, 4, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return logits


def test_images_of_several_sizes_have_no_maps_and_the_reason_is_said() -> None:
    torch.manual_seed(0)
    hooked = salve.attach(Net().eval(), head="fc", probe=Mixed()[0][0][None])
    acts = salve.record(hooked, DataLoader(Mixed(), 1), progress=False)
    dictionary = salve.fit(acts, "itda", n_latents=4)
    cards = [
        salve.latent_card(hooked, dictionary, acts, latent, images=Mixed(), top=12)
        for latent in range(4)
    ]
    assert all(len(card.images) == 12 for card in cards)
    assert all(card.maps is None for card in cards)


def test_images_of_more_than_three_channels_are_shown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = [(torch.rand(4, 8, 12), number % 3) for number in range(24)]
    loader: DataLoader[Any] = DataLoader(images, 8)  # type: ignore[arg-type] # a list is one
    hooked = salve.attach(Net(4).eval(), head="fc", probe=torch.rand(2, 4, 8, 12))
    acts = salve.record(hooked, loader, progress=False)
    dictionary = salve.fit(acts, "itda", n_latents=4)
    card = salve.latent_card(hooked, dictionary, acts, 0, images=images, top=2)
    assert card.maps is not None
    salve.atlas(hooked, dictionary, acts, tmp_path / "atlas", images=images, maximized=[0])
    assert list((tmp_path / "atlas" / "data" / "images").iterdir())


@pytest.mark.parametrize(
    ("samples", "captions"),
    [
        ([(f"/a/{number}.png", number % 3) for number in range(24)], ["0.png", "1.png"]),
        ([(Path(f"/a/{number}.png"),) for number in range(24)], ["0.png", "1.png"]),
        ([{"path": "a.png", "label": 0}] * 24, ["image 0", "image 1"]),
        ([("a.png", 0)] * 23, ["image 0", "image 1"]),
        (torch.rand(24, 3, 8, 8), ["image 0", "image 1"]),
    ],
)
def test_files_are_named_where_samples_are_those_of_an_image_folder(
    samples: Any, captions: list[str]
) -> None:
    images = Mixed()
    images.samples = samples
    hooked = salve.attach(Net().eval(), head="fc", probe=images[0][0][None])
    acts = salve.record(hooked, DataLoader(images, 1), progress=False)
    dictionary = salve.fit(acts, "itda", n_latents=4)
    card = salve.latent_card(hooked, dictionary, acts, 0, images=images, top=24)
    assert {caption.partition(", ")[2] for caption in card.captions} >= set(captions)
