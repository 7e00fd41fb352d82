"""Models that timm creates, and artifacts of edits of them."""

from typing import Any

import timm
import torch
from small_artifacts import random_dictionary
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.demo import digits
from salve_plugin.share.artifact import EditArtifact

MODEL = {"config.json", "model.safetensors"}


@register_model
def salve_digits_resnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """The digits ResNet as an architecture of the user's own that timm knows by name."""

    def build(**_: Any) -> nn.Module:
        return digits.build("resnet")

    if not options["pretrained_cfg"]:
        options["pretrained_cfg"] = {"input_size": (1, 32, 32), "num_classes": 10}
    model: nn.Module = build_model_with_cfg(build, "salve_digits_resnet", pretrained, **options)
    return model


def created(name: str, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, **arguments)
    return model.eval()


def trained(name: str, fixture: nn.Module, **arguments: Any) -> nn.Module:
    """Return a model of timm's factory with the weights of a network trained on digits."""
    model = created(name, in_chans=1, num_classes=10, **arguments)
    model.load_state_dict(fixture.state_dict())
    return model


def artifact_of(
    model: nn.Module, rows: tuple[int, ...] | None = None, strength: float = 2.5, **parts: Any
) -> EditArtifact:
    hooked = salve.attach(model)
    dictionary = random_dictionary(hooked)
    edit = salve.suppress(hooked, dictionary, latent=3, strength=strength, rows=rows)
    return EditArtifact.of(hooked, edit, **parts)


def loaded(name: str) -> nn.Module:
    """Return what timm makes of "local-dir:FOLDER" or "hf-hub:user/name"."""
    model: nn.Module = timm.create_model(name, pretrained=True)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    size: Any = salve.attach(model).description["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    answer: Tensor = model(images.to(next(model.parameters()).dtype))
    return answer
