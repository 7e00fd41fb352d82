"""What does an idle hooked model cost?

The bare and the hooked forward pass are timed in turns, so that both meet the same machine; the
figure is the median of the ratios of neighbours. The outputs must be equal bit for bit.

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

from salve_plugin.adapter import attach

CASES = [("resnet18", 8), ("resnet18", 1), ("vit_tiny_patch16_224", 8), ("vit_tiny_patch16_224", 1)]
PROMISE = 1.03


def seconds(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Return the time of one forward pass."""
    began = time.perf_counter()
    run(images)
    return time.perf_counter() - began


@torch.inference_mode()
def measure(model: nn.Module, images: Tensor, rounds: int) -> tuple[float, float, bool, int]:
    """Return the bare time, the ratio, whether outputs are equal, and the number of sites."""
    hooked = attach(model)
    equal = torch.equal(model(images), hooked(images))
    bare, ratios = [], []
    for turn in range(rounds):
        if turn % 2:  # who goes first alternates, since the first of two pays for cold caches
            with_hooks, without = seconds(hooked, images), seconds(model, images)
        else:
            without, with_hooks = seconds(model, images), seconds(hooked, images)
        bare.append(without)
        ratios.append(with_hooks / without)
    return statistics.median(bare), statistics.median(ratios), equal, len(hooked.sites)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description="Cost of an idle hooked model.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, timm {timm.__version__}, {options.threads} thread(s), "
        f"seed 0, {options.rounds} rounds"
    )
    print(f"{'model':24s} batch sites  bare ms   ratio  bits equal  <= {PROMISE}")
    for name, batch in CASES:
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        images = torch.randn(batch, 3, 224, 224)
        bare, ratio, equal, sites = measure(model, images, options.rounds)
        verdict = "yes" if ratio <= PROMISE else "NO"
        row = f"{name:24s} {batch:5d} {sites:5d} {bare * 1e3:8.1f} {ratio:7.4f}"
        print(f"{row}  {equal!s:10s}  {verdict}")


if __name__ == "__main__":
    main()
