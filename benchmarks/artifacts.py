"""Sizes and times of edit artifacts, against a plain copy of the same files and the base's size.

For a ResNet-18 and a ViT-B head (1000 classes, random weights): the recipe alone, with the critical
strengths of 50 000 images, with the pristine rows of one class and of all, and with the dictionary.
Prints one table; run it with `python benchmarks/artifacts.py --threads 1`.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from salve_plugin import EditArtifact, attach, suppress
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.demo.environment import environment
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.hooks import HookedModel

IMAGES = 50_000
REPEATS = 20
SHAPES = {"resnet18": 1024, "vit_base_patch16_224": 1536}
"""Architecture and number of latents."""


def random_dictionary(hooked: HookedModel, latents: int) -> Dictionary:
    """Return a dictionary of random atoms; its size is what matters here."""
    site = hooked.site("unembed.hook_in")
    generator = torch.Generator().manual_seed(0)
    atoms = nn.functional.normalize(torch.randn(latents, site.width, generator=generator), dim=1)
    tensors = {
        "atoms": atoms,
        "encoder_weight": atoms.clone(),
        "encoder_bias": torch.zeros(latents),
        "decoder_bias": torch.zeros(site.width),
    }
    return Dictionary(tensors, create("l1", {}), site)


def random_strengths(classes: int, edit: Edit) -> AlphaCrit:
    """Return critical strengths of the size of ImageNet's validation set."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(IMAGES, generator=generator, dtype=torch.float64) * 5
    labels = torch.arange(IMAGES) % classes
    return AlphaCrit(
        values, values.clone(), labels, labels.clone(), "zero", 0.5, "label", edit.family
    )


def variants(
    hooked: HookedModel, edit: Edit, one_row: Edit, dictionary: Dictionary
) -> dict[str, EditArtifact]:
    """Return the artifacts to measure, by what they carry."""
    labels = [f"class number {index}" for index in range(1000)]
    strengths = random_strengths(1000, edit)
    return {
        "recipe": EditArtifact(edit),
        "+ labels, alpha_crit": EditArtifact(edit, labels=labels, alpha_crit=strengths),
        "+ pristine, one row": EditArtifact.of(hooked, one_row),
        "+ pristine, all rows": EditArtifact.of(hooked, edit),
        "+ dictionary": EditArtifact(edit, dictionary=dictionary, embed_dictionary=True),
    }


def seconds(action: Callable[[], object]) -> float:
    """Return the median time of an action, warm."""
    action()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]


def plain_copy(source: Path, target: Path) -> None:
    """Copy a folder's files without any checks or syncing: the physical limit."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def main() -> None:
    """Measure and print."""
    import timm

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(environment(threads))
    print(f"{'':44}{'bytes':>12}{'of base':>9}{'save ms':>9}{'load ms':>9}{'copy ms':>9}")
    for name, latents in SHAPES.items():
        model = timm.create_model(name, pretrained=False).eval()
        base = sum(tensor.nbytes for tensor in model.state_dict().values())
        hooked = attach(model)
        dictionary = random_dictionary(hooked, latents)
        edit = suppress(hooked, dictionary, latent=3, strength=2.0)
        one_row = suppress(hooked, dictionary, latent=3, strength=2.0, rows=[7])
        for what, artifact in variants(hooked, edit, one_row, dictionary).items():
            with tempfile.TemporaryDirectory() as scratch:
                report(f"{name}: {what}", artifact, base, Path(scratch))


def report(title: str, artifact: EditArtifact, base: int, scratch: Path) -> None:
    """Print one line of the table."""
    folder, copy = scratch / "artifact", scratch / "copy"
    save = seconds(lambda: artifact.save_pretrained(folder))
    load = seconds(lambda: EditArtifact.from_pretrained(folder))
    raw = seconds(lambda: plain_copy(folder, copy))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{title:44}{size:12,}{size / base:9.3%}{save * 1e3:9.1f}{load * 1e3:9.1f}{raw * 1e3:9.2f}"
    )


if __name__ == "__main__":
    main()
