"""A dictionary of the digits ResNet, and edits of it that the tests assess."""

from collections.abc import Callable
from pathlib import Path

import pytest

import salve_plugin as salve
from salve_plugin import Activations, Dictionary, HookedModel
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="session")
def resnet() -> HookedModel:
    """The trained ResNet, attached; leave it as you find it."""
    return salve.attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))


@pytest.fixture(scope="session")
def vit() -> HookedModel:
    """The trained ViT, likewise."""
    return salve.attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))


@pytest.fixture(scope="session")
def acts(resnet: HookedModel, digits_test: digits.Split) -> Activations:
    """Head inputs of the 360 test digits."""
    return salve.record(resnet, digits_test.batches(), progress=False, classes=digits.CLASSES)


@pytest.fixture(scope="session")
def atoms(resnet: HookedModel, make_dictionary: Callable[..., Dictionary]) -> Dictionary:
    """Sixteen random atoms of its head input."""
    return make_dictionary(resnet.site("unembed.hook_in"), 16)
