"""What does an idle hooked model cost, and an edited one, beside steering by a hook?

The bare and the other forward pass are timed in turns, so that both meet the same machine; the
figure is the median of the ratios of neighbours. Idle outputs must be equal bit for bit; the edited
model and the hook make the same change of a hidden site, an erased direction.

    python benchmarks/hook_overhead.py
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from salve_plugin import Edit, HookedModel, LowRankMap, attach, edit_at
from salve_plugin.hooks import tapped

CASES = [("resnet18", 8), ("resnet18", 1), ("vit_tiny_patch16_224", 8), ("vit_tiny_patch16_224", 1)]
SITES = {"resnet18": "blocks.2.hook_resid_post", "vit_tiny_patch16_224": "blocks.6.hook_mlp_out"}
"""Where a direction is erased: one site, as an eraser of a concept would."""

PROMISE, EDITED_PROMISE = 1.03, 1.01

Run = Callable[[Tensor], Tensor]


def seconds(run: Run, images: Tensor) -> float:
    """Return the time of one forward pass."""
    began = time.perf_counter()
    run(images)
    return time.perf_counter() - began


def ratio(run: Run, bare: Run, images: Tensor, rounds: int) -> tuple[float, float]:
    """Return the bare time and how many times it the other takes, both medians."""
    times, ratios = [], []
    for turn in range(rounds):
        if turn % 2:  # who goes first alternates, since the first of two pays for cold caches
            other, own = seconds(run, images), seconds(bare, images)
        else:
            own, other = seconds(bare, images), seconds(run, images)
        times.append(own)
        ratios.append(other / own)
    return statistics.median(times), statistics.median(ratios)


def erased(hooked: HookedModel, name: str) -> Edit:
    """Return the edit that erases a random direction of a hidden site."""
    site = hooked.site(SITES[name])
    direction = torch.randn(site.width, 1, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    return edit_at(hooked, site, LowRankMap(direction, direction, torch.zeros(1)))


def measure(model: nn.Module, name: str, images: Tensor, rounds: int) -> tuple[float, ...]:
    """Return bare seconds, whether idle outputs are equal, and the ratios: idle, edited, hook."""
    hooked = attach(model)
    edit = erased(hooked, name)
    with torch.inference_mode():
        equal = torch.equal(model(images), hooked(images))
        bare, idle = ratio(hooked, model, images, rounds)
        edited = edit.edited(model)
        _, permanent = ratio(edited, model, images, rounds)
        axis = edit.site.channel_axis

        def steered(batch: Tensor) -> Tensor:
            with tapped(model, edit.site, lambda x: edit.operator.activation(x, axis)):
                result: Tensor = model(batch)
                return result

        _, hook = ratio(steered, model, images, rounds)
    return bare, float(equal), idle, permanent, hook


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description="Cost of idle, edited and steered models.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, timm {timm.__version__}, {options.threads} thread(s), "
        f"seed 0, {options.rounds} rounds; promises: idle {PROMISE}, edited {EDITED_PROMISE}"
    )
    print("| model | batch | bare ms | idle attached | bits equal | edited | the same by a hook |")
    print("|---|---:|---:|---:|---|---:|---:|")
    for name, batch in CASES:
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        images = torch.randn(batch, 3, 224, 224)
        bare, equal, idle, permanent, hook = measure(model, name, images, options.rounds)
        print(
            f"| {name} | {batch} | {bare * 1e3:.1f} | {idle:.3f} | {'yes' if equal else 'NO'} | "
            f"{permanent:.3f} | {hook:.3f} |"
        )


if __name__ == "__main__":
    main()
