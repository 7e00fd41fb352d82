"""Maps of galleries, where images are not alike."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import salve_plugin as salve


class Mixed(Dataset[tuple[Tensor, int]]):
    """Every second image is wider."""

    def __len__(self) -> int:
        """Return the number of images."""
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        random = torch.Generator().manual_seed(index)
        return torch.rand(1, 8, 8 + 4 * (index % 2), generator=random), index % 3


class Net(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 4, 4), nn.Linear(6, 3)

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
