"""Make the pictures of the atlas in the documentation.

    python benchmarks/atlas_pictures.py [--out docs/atlas] [--keep FOLDER]

EfficientNet-Lite0 with its ImageNet weights looks at 32 views of each photograph that scikit-image
and scikit-learn ship, each view labelled with what the network itself sees in it. Needs the `demo`
extra, Debian's Chromium and `npm ci` in `atlas/`.
"""

import argparse
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from salve_plugin.adapter import attach, installed_adapters
from salve_plugin.control.critical import alpha_crit
from salve_plugin.control.making import suppress
from salve_plugin.demo import pretrained
from salve_plugin.demo.photographs import augmented
from salve_plugin.discover.features import profile
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.sweep import sweep
from salve_plugin.discover.training.fit import fit
from salve_plugin.report.atlas import atlas
from salve_plugin.store.files import write_atomically
from salve_plugin.validate.evidence.collect import evidence
from salve_plugin.validate.pictures import png_bytes
from salve_plugin.validate.quality import quality

ROOT = Path(__file__).parents[1]
SHOWN = "espresso"


def class_names(known: Sequence[Sequence[str]]) -> list[str]:
    """Return for each class the shortest of its names that no other has, its number at worst."""
    counts = Counter(name.casefold() for names in known for name in {*names})
    return [
        min(
            (name for name in names if counts[name.casefold()] == 1),
            key=lambda name: (name == names[0], len(name)),
        )
        for names in known
    ]


def main() -> None:
    """Write the atlas and take pictures of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "atlas")
    parser.add_argument("--keep", type=Path, help="write the atlas here and keep it")
    chosen = parser.parse_args()
    network = pretrained.load_network()
    transform = installed_adapters()["timm"].transform(network)
    views = [
        augmented(photo.image, transform, seed) for seed, photo in enumerate(pretrained.photos())
    ]
    images = torch.cat(views)
    with torch.no_grad():
        labels = torch.cat([network(part).argmax(1) for part in torch.split(images, 32)])
    hooked, data_set = attach(network), TensorDataset(images, labels)
    names = class_names(installed_adapters()["timm"].class_names(network) or [])
    acts = record(hooked, DataLoader(data_set, batch_size=32), classes=names, progress=False)
    dictionary = fit(acts, "topk", n_latents=128, k=8, steps=300, seed=0)
    label = names.index(SHOWN)
    latent = profile(dictionary, acts).dominant(label)
    edit = suppress(hooked, dictionary, latent=latent, strength=0.0, rows=[label])
    crit = alpha_crit(hooked, edit, acts, target="flip", classes=[label])
    strength = crit.strength_for(label, 0.6)
    trials = sweep(acts, ["topk", "itda"], {"k": [4, 16], "n_latents": [64, 128]}, steps=100)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch) / "atlas"
        atlas(
            hooked, dictionary, acts, folder, images=data_set, mapped=24, top=12, force=True,
            quality=quality(dictionary, acts), evidence=evidence(hooked, dictionary, acts),
            trials=trials, maximized=[latent], title="EfficientNet-Lite0", study="study",
        )  # fmt: skip
        shots = Path(scratch) / "shots"
        shots.mkdir()
        script = ROOT / "atlas" / "browser" / "pictures.mjs"
        command = ["node", script, folder.resolve(), shots, latent, label, label, f"{strength:.4g}"]
        subprocess.run([str(word) for word in command], check=True)
        chosen.out.mkdir(parents=True, exist_ok=True)
        for shot in sorted(shots.glob("*.png")):
            with Image.open(shot) as picture:
                few = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
                data = png_bytes(few)
            write_atomically(chosen.out / shot.name, data)
            print(f"{chosen.out / shot.name}: {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
