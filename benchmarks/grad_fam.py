"""Grad-FAM's time against a bare forward and backward pass, and Captum's Grad-CAM.

    python benchmarks/grad_fam.py [--batch 8] [--rounds 15] [--threads 1]

All three explain the same images with the same network in one run, in turns; the table has the
median of each and its ratio to the bare pass. Grad-FAM also reads 2048 latents, and its backward
pass ends at the layer; the bare backward pass goes down to every weight.

The second table is the maps of 512 latents at once (`grad_fam_maps`) against a call of
`LayerGradFam` for each of them (512 times the median call), and how far apart the maps are, as a
share of the largest value.
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

from salve_plugin.validate.all_maps import grad_fam_maps
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.layout import Tokens

SEED = 0
LATENTS = 2048
ALL = 512
"""Latents whose maps are made at once."""


class Affine(nn.Module):
    """The encoder of an affine autoencoder with random weights."""

    def __init__(self, width: int, n_latents: int = LATENTS) -> None:
        """Draw the weights."""
        super().__init__()
        self.linear = nn.Linear(width, n_latents).requires_grad_(False)
        self.n_latents, self.width = n_latents, width

    def pre_activation(self, x: Tensor) -> Tensor:
        """Return the latents."""
        result: Tensor = self.linear(x)
        return result

    def encode(self, x: Tensor) -> Tensor:
        """Return their ReLU."""
        return self.pre_activation(x).relu()


def grad_fam(name: str, n_latents: int) -> tuple[Any, nn.Module, LayerGradFam]:
    """Return a network with random weights, its last layer with positions, and its Grad-FAM."""
    model: Any = timm.create_model(name).eval()
    vit = hasattr(model, "blocks")
    layer = model.blocks[-1].norm1 if vit else model.layer4
    head = model.get_classifier()
    tokens: Tokens = (model.num_prefix_tokens, model.patch_embed.grid_size) if vit else None
    sae = Affine(head.in_features, n_latents)
    return model, layer, LayerGradFam(model, layer, sae, site=(head, "in"), tokens=tokens)


def contestants(name: str, images: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    model, layer, fam = grad_fam(name, LATENTS)
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


def all_at_once(name: str, images: Tensor, rounds: int) -> None:
    """Print how much faster the maps of all latents are made at once, and how equal they are."""
    _, _, fam = grad_fam(name, ALL)
    together, single = list[float](), list[float]()
    for latent in range(rounds):
        together.append(seconds(lambda: grad_fam_maps(fam, images)))
        single.append(seconds(lambda: fam.attribute(images, latent)))  # noqa: B023 # called here
    maps = grad_fam_maps(fam, images)
    apart = max(
        float((maps[:, [latent]] - fam.attribute(images, latent)).abs().max())
        for latent in range(0, ALL, ALL // 8)
    )
    one_by_one, at_once = ALL * statistics.median(single), statistics.median(together)
    print(
        f"{name:24}{one_by_one * 1e3:14.0f}{at_once * 1e3:12.1f}{one_by_one / at_once:8.0f}"
        f"{apart / float(maps.abs().max()):12.1e}"
    )


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
    networks = {"resnet18": 160, "test_vit": 160, "vit_tiny_patch16_224": 224}
    for name, size in networks.items():
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
    print(f"\n{ALL} latents{'':12}{'one by one, ms':>16}{'at once':>10}{'ratio':>8}{'apart':>12}")
    for name, size in networks.items():
        images = torch.randn(options.batch, 3, size, size)
        all_at_once(name, images, max(1, options.rounds // 5))


if __name__ == "__main__":
    main()
