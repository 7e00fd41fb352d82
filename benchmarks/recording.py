"""Time `record` against the bare forward loop that it cannot do without.

    python benchmarks/recording.py [--images 4096] [--batch 64]

Both run the same untrained timm ResNet-18 at 64x64 on the same random images, in turns; the table
gives the median of three. What recording adds is hooks, checks, fingerprints and durable files.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from salve_plugin.adapter import attach
from salve_plugin.discover.recording.stream import record
from salve_plugin.hooks import HookedModel

Batches = list[tuple[Tensor, Tensor]]


def bare(hooked: HookedModel, batches: Batches) -> None:
    """Run the model over all batches and keep nothing."""
    hooked.model.eval()
    with torch.no_grad():
        for images, _ in batches:
            hooked.model(images)


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print one line for each site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64)
    chosen = parser.parse_args()
    hooked = attach(timm.create_model("resnet18", num_classes=10))
    random = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(chosen.batch, 3, 64, 64, generator=random), torch.arange(chosen.batch) % 10)
        for _ in range(chosen.images // chosen.batch)
    ]
    bare(hooked, batches[:4])
    print(f"{'site':32}{'rows':>10}{'bare s':>10}{'record s':>10}{'ratio':>8}")
    for site in ("unembed.hook_in", "blocks.3.hook_resid_post", "blocks.2.hook_resid_post"):
        alone, recorded = [], []
        rows = 0
        for _ in range(3):
            alone.append(seconds(lambda: bare(hooked, batches)))
            start = time.perf_counter()
            rows = record(hooked, batches, site, progress=False).n_rows
            recorded.append(time.perf_counter() - start)
        a, b = statistics.median(alone), statistics.median(recorded)
        print(f"{site:32}{rows:10}{a:10.2f}{b:10.2f}{b / a:8.2f}")


if __name__ == "__main__":
    main()
