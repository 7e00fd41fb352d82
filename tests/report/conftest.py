"""A small study of real digits."""

from pathlib import Path

import pytest
from small_study import NAMES, Numbers, Small
from torch.utils.data import DataLoader

import salve_plugin as salve
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def small(digits_train: digits.Split, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A trained ResNet, 300 digits and a dictionary of 96 latents."""
    hooked = salve.attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    part = digits.Split(digits_train.images[:300], digits_train.labels[:300])
    images = Numbers(part, NAMES)
    folder = tmp_path_factory.mktemp("activations")
    loader = DataLoader(images, batch_size=64)
    acts = salve.record(hooked, loader, "unembed.hook_in", folder=folder, progress=False)
    dictionary = salve.fit(acts, "itda", n_latents=96)
    return Small(hooked, dictionary, acts, images)
