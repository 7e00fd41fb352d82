"""Images that a model cannot take are named, with their shape and type and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.control.evaluate import evaluate
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError
from salve_plugin.feeding import feeding, fitted
from salve_plugin.hooks import HookedModel

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
WRONG: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: (x * 255).byte(), r"torch\.uint8.*images\.float\(\) / 255"),
    (lambda x: x.permute(0, 2, 3, 1), r"\(4, 64, 64, 3\).*permute\(0, 3, 1, 2\)"),
    (lambda x: x[:, :1], r"\(4, 1, 64, 64\).*attached with images of shape \(\d+, 3, "),
    (lambda x: x.flatten(1), r"\(4, 12288\).*expected \(batch, channels, height, width\)"),
    (lambda x: x.to(torch.complex64), r"torch\.complex64"),
]


@pytest.fixture(scope="module")
def hooked() -> HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model("test_resnet", num_classes=4).eval()
    return attach(model)


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_batch_that_does_not_fit_is_named(
    hooked: HookedModel, change: Callable[[Tensor], Tensor], said: str
) -> None:
    loader = [(IMAGES, torch.arange(4)), (change(IMAGES), torch.arange(4))]
    for call in (lambda: record(hooked, loader, progress=False), lambda: evaluate(hooked, loader)):
        with pytest.raises(InputError, match=f"images of batch 1, .*{said}"):
            call()


def test_one_image_without_a_batch_axis_is_told(hooked: HookedModel) -> None:
    with pytest.raises(InputError, match=r"batch 0 has images of shape|add a batch axis"):
        record(hooked, [(IMAGES[0], torch.arange(3))], progress=False)
    with pytest.raises(InputError, match=r"images\[None\]"), feeding(IMAGES[0], "inputs"):
        hooked(IMAGES[0])


def test_a_device_that_is_not_there_is_named(hooked: HookedModel) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    loader = [(IMAGES, torch.arange(4))]
    with pytest.raises(InputError, match="batch 0 cannot be moved to device 'cuda'"):
        record(hooked, loader, progress=False, device="cuda")
    with pytest.raises(InputError, match="device 'nowhere'"):
        record(hooked, loader, progress=False, device="nowhere")


def test_images_take_the_models_type_and_the_librarys_own_errors_pass() -> None:
    model = nn.Linear(2, 2).bfloat16()
    assert fitted(torch.zeros(1, 2), model, "images").dtype == torch.bfloat16
    assert fitted(torch.zeros(1, 2).byte(), model, "images").dtype == torch.uint8
    with pytest.raises(InputError, match=r"^mine$"), feeding(IMAGES, "images"):
        raise InputError("mine")
    with pytest.raises(KeyError), feeding(IMAGES, "images"):
        raise KeyError("an error of the model's own code")
