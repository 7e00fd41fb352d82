"""What a gallery's maps and images made to drive latents cost.

    python benchmarks/atlas_maps.py [--latents 64] [--top 12] [--made 2]

Networks with random weights on random images; the latents' top images are those of an ITDA
dictionary. Maps at once, image by image, are those of the atlas; pair by pair, each latent and
image is a row of a batch of `LayerGradFam.attribute`. Seconds are of one processor.
"""

import argparse
import warnings
from collections.abc import Sequence
from time import process_time

import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from salve_plugin.adapter import attach
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit
from salve_plugin.hooks import HookedModel
from salve_plugin.report.gallery import Images, maps
from salve_plugin.validate.activity import activity
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.maximization import maximize

NETWORKS = (("test_resnet", 64), ("resnet18", 96), ("vit_tiny_patch16_224", 224))
IMAGES, BATCH = 300, 32


def pair_by_pair(
    hooked: HookedModel,
    dictionary: Dictionary,
    images: Images,
    top_images: Tensor,
    latents: Sequence[int],
) -> Tensor:
    """Return the maps (latents, top, h, w)."""
    pairs = [(latent, int(image)) for latent in latents for image in top_images[latent]]
    fam = LayerGradFam.of(hooked, dictionary)
    heats = []
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        inputs = torch.stack([images.read(image) for _, image in some])
        heats.append(fam.attribute(inputs, target=[latent for latent, _ in some])[:, 0])
    maps_of_pairs = torch.cat(heats)
    return maps_of_pairs.view(len(latents), -1, *maps_of_pairs.shape[1:])


def main() -> None:
    """Print two lines for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--made", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, side in NETWORKS:
        torch.manual_seed(0)
        hooked = attach(timm.create_model(name, num_classes=10).eval())
        images, labels = torch.randn(IMAGES, 3, side, side), torch.arange(IMAGES) % 10
        data_set = TensorDataset(images, labels)
        loader = DataLoader(data_set, batch_size=BATCH)
        acts = record(hooked, loader, "unembed.hook_in", progress=False)
        dictionary = fit(acts, "itda", n_latents=256)
        latents = list(range(min(chosen.latents, dictionary.n_latents)))
        top_images = activity(dictionary, acts, chosen.top).top_images
        shown = Images.of(hooked, acts, data_set)
        start = process_time()
        before = pair_by_pair(hooked, dictionary, shown, top_images, latents)
        middle = process_time()
        grids = maps(hooked, dictionary, shown, top_images, latents).grids
        end = process_time()
        after = torch.stack([grids[latent] for latent in latents])
        apart = float((after - before).abs().max() / before.abs().max())
        print(
            f"{name}, {len(latents)} latents x {chosen.top} images: pair by pair "
            f"{middle - start:.1f} s, at once {end - middle:.1f} s, {apart:.0e} of the largest "
            "value apart"
        )
        start = process_time()
        for latent in latents[: chosen.made]:
            maximize(hooked, dictionary, latent, size=(3, side, side))
        seconds = (process_time() - start) / chosen.made
        print(f"{name}, {side} pixels: {seconds:.1f} s an image made")


if __name__ == "__main__":
    main()
