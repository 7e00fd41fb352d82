"""How an atlas of 1000 classes and 16 000 latents is to write, to open and to use.

    python benchmarks/atlas.py [--classes 1000] [--latents 16000] [--images 10000] [--evidence]

Activations, head and dictionary are synthetic: every class has an atom of its own among random
ones; images are their class's atom with a few others and noise, and the head reads each class by
its atom. The page is opened from disk in Debian's Chromium (`apt-get install chromium nodejs npm`,
then `npm ci` in `atlas/`) with the network off; times of interactions are medians of five, from the
event until what follows from it is painted.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from salve_plugin.adapter import attach
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.discover.recording.stream import record
from salve_plugin.report.atlas import atlas
from salve_plugin.site import Site
from salve_plugin.validate.evidence.collect import evidence

ROOT = Path(__file__).parents[1]
HEIGHT = 24


class Read(nn.Module):
    """A head that reads pictures as they are: what is recorded is what the benchmark makes."""

    def __init__(self, weight: Tensor) -> None:
        """Take the head's weight (classes, width)."""
        super().__init__()
        self.head = nn.Linear(weight.shape[1], len(weight))
        self.head.weight.data.copy_(weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(x.flatten(1))
        return logits


def made_images(atoms: Tensor, labels: Tensor) -> Tensor:
    """Return images (n, 1, HEIGHT, width / HEIGHT) of the classes' atoms and a few others."""
    random = torch.Generator().manual_seed(1)
    others = torch.randint(len(atoms), (len(labels), 8), generator=random)
    amounts = 0.6 * torch.rand(len(labels), 8, 1, generator=random)
    x = 2 * atoms[labels] + (amounts * atoms[others]).sum(1)
    x = x + 0.04 * torch.randn(x.shape, generator=random)
    return x.reshape(len(labels), 1, HEIGHT, -1)


def made_dictionary(atoms: Tensor, site: Site) -> Dictionary:
    """Return a TopK dictionary whose encoder is its atoms."""
    zeros = {"encoder_bias": torch.zeros(len(atoms)), "decoder_bias": torch.zeros(atoms.shape[1])}
    tensors = {"atoms": atoms, "encoder_weight": atoms.clone(), **zeros}
    return Dictionary(tensors, create("topk", {"k": 32}), site)


def main() -> None:
    """Print one line for each number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--latents", type=int, default=16_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--stepped", type=int, default=4)
    parser.add_argument("--evidence", action="store_true", help="measure and show that, too")
    parser.add_argument("--keep", type=Path, help="write the atlas here and keep it")
    chosen = parser.parse_args()
    random = torch.Generator().manual_seed(0)
    atoms = torch.randn(chosen.latents, chosen.width, generator=random)
    atoms = functional.normalize(atoms, dim=1)
    labels = torch.arange(chosen.images) % chosen.classes
    images = made_images(atoms, labels)
    model = Read(8 * atoms[: chosen.classes])
    hooked = attach(model, head="head", probe=images[:4])
    data_set = TensorDataset(images, labels)
    acts = record(hooked, DataLoader(data_set, batch_size=256), "unembed.hook_in", progress=False)
    dictionary = made_dictionary(atoms, acts.site)
    speaking = None
    if chosen.evidence:
        processor = time.process_time()
        speaking = evidence(hooked, dictionary, acts)
        print(f"evidence: {time.process_time() - processor:.0f} s on the processor")
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch) / "atlas"
        start, processor = time.perf_counter(), time.process_time()
        atlas(
            hooked, dictionary, acts, folder, images=data_set, title="Synthetic",
            stepped=chosen.stepped, evidence=speaking,
        )  # fmt: skip
        print(
            f"{chosen.images} images, {chosen.classes} classes, {chosen.latents} latents, "
            f"{chosen.width} features: written in {time.perf_counter() - start:.0f} s, "
            f"{time.process_time() - processor:.0f} s of them on the processor"
        )
        files = [file for file in folder.rglob("*") if file.is_file()]
        sizes: dict[str, int] = {}
        for file in files:
            part = file.relative_to(folder).parts
            kind = part[1] if len(part) > 2 else part[-1]
            sizes[kind] = sizes.get(kind, 0) + file.stat().st_size
        print(f"{len(files)} files, {sum(sizes.values()) / 1e6:.1f} MB")
        for kind, size in sorted(sizes.items(), key=lambda item: -item[1]):
            print(f"  {kind:24}{size / 1e6:10.2f} MB")
        script = ROOT / "atlas" / "browser" / "measure.mjs"
        measured = subprocess.run(
            ["node", str(script), str(folder.resolve()), "0", "0"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if measured.returncode:
            raise SystemExit(measured.stderr)
        for name, value in json.loads(measured.stdout).items():
            shown = f"{value:10.0f} ms" if isinstance(value, int | float) else str(value)
            print(f"  {name:44}{shown}")


if __name__ == "__main__":
    main()
