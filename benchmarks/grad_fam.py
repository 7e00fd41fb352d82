"""Grad-FAM's time against a bare forward and backward pass, and Captum's Grad-CAM.

    python benchmarks/grad_fam.py [--batch 8] [--rounds 15] [--threads 1]

All three explain the same images with the same network in one run, in turns; the table has the
median of each and its ratio to the bare pass. Grad-FAM also reads 2048 latents, and its backward
pass ends at the layer; the bare backward pass goes down to every weight.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import captum
import timm
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.layout import Tokens

SEED = 0
LATENTS = 2048


class Affine(nn.Module):
    """The encoder of an affine autoencoder with random weights."""

    def __init__(self, width: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.linear = nn.Linear(width, LATENTS).requires_grad_(False)
        self.n_latents, self.width = LATENTS, width

    def pre_activation(self, x: Tensor) -> Tensor:
        """Return the latents."""
        result: Tensor = self.linear(x)
        return result

    def encode(self, x: Tensor) -> Tensor:
        """Return their ReLU."""
        return self.pre_activation(x).relu()


def contestants(name: str, images: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name, for a network with random weights."""
    model: Any = timm.create_model(name).eval()
    vit = hasattr(model, "blocks")
    layer = model.blocks[-1].norm1 if vit else model.layer4
    head = model.get_classifier()
    tokens: Tokens = (model.num_prefix_tokens, model.patch_embed.grid_size) if vit else None
    fam = LayerGradFam(
        model,
        layer,
        Affine(head.in_features),
        site=(head, "in"),
        tokens=tokens,
    )
    cam = LayerGradCam(model, layer)

    def bare() -> None:
        model.zero_grad(set_to_none=True)
        model(images)[:, 0].sum().backward()

    return {
        "forward and backward": bare,
        "forward only": torch.no_grad()(lambda: model(images)),
        "LayerGradCam (Captum)": lambda: cam.attribute(images, 0),
        "LayerGradFam": lambda: fam.attribute(images, 0),
    }


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} thread(s), Python "
        f"{platform.python_version()}, torch {torch.__version__}, captum {captum.__version__}, "
        f"timm {timm.__version__}, seed {SEED}, batch {options.batch}, {options.rounds} rounds"
    )
    for name, size in {"resnet18": 160, "test_vit": 160, "vit_tiny_patch16_224": 224}.items():
        calls = contestants(name, torch.randn(options.batch, 3, size, size))
        for call in calls.values():
            call()
        times = {each: list[float]() for each in calls}
        for _ in range(options.rounds):
            for each, call in calls.items():
                times[each].append(seconds(call))
        medians = {each: statistics.median(values) for each, values in times.items()}
        print(f"\n{name}, {size} px\n{'':24}{'median ms':>10}{'ratio':>8}")
        for each, median in medians.items():
            print(f"{each:24}{median * 1e3:10.1f}{median / medians['forward and backward']:8.2f}")


if __name__ == "__main__":
    main()
