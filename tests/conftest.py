"""Trained networks and real images that most tests share."""

from pathlib import Path

import pytest
import torch
from torch import nn

from salve_plugin.demo import digits

FIXTURES = Path(__file__).parent / "fixtures"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _splits() -> tuple[digits.Split, digits.Split]:
    return digits.load_digits()


@pytest.fixture(scope="session")
def digits_train(_splits: tuple[digits.Split, digits.Split]) -> digits.Split:
    """The 1437 digits that the networks were trained on."""
    return _splits[0]


@pytest.fixture(scope="session")
def digits_test(_splits: tuple[digits.Split, digits.Split]) -> digits.Split:
    """The 360 digits that they never saw."""
    return _splits[1]


@pytest.fixture
def digits_resnet() -> nn.Module:
    """A fresh copy of a timm ResNet trained on digits: 32x32x1 -> 128 features -> 10 classes."""
    return digits.load("resnet", FIXTURES / "digits_resnet.safetensors")


@pytest.fixture
def digits_vit() -> nn.Module:
    """A fresh copy of a timm VisionTransformer (CLS pooling) trained on digits, 64 features."""
    return digits.load("vit", FIXTURES / "digits_vit.safetensors")


@pytest.fixture(params=["resnet", "vit"])
def digits_network(request: pytest.FixtureRequest) -> nn.Module:
    """Each of the two trained networks in turn."""
    return digits.load(request.param, FIXTURES / f"digits_{request.param}.safetensors")
