"""Where in ten families does a permanent edit of a hidden activation have exact targets?

Prints, for each family and kind of site, at how many of the sites all readers are linear, and at
how many one linear layer writes it. Random weights; BatchNorm statistics, LayerScale and biases are
randomized too, so that nothing is exact only because fresh weights do nothing.

    python benchmarks/hidden_edits.py
"""

import re
import warnings
from collections.abc import Iterable

import timm
import torch
from torch import nn

from salve_plugin.adapter import attach
from salve_plugin.site import Site

FAMILIES = {
    "ResNet": "resnet50",
    "RegNet": "regnety_004",
    "ConvNeXt": "convnext_tiny",
    "EfficientNet": "tf_efficientnet_lite0",
    "MobileNetV2": "mobilenetv2_100",
    "MobileNetV3": "mobilenetv3_small_100",
    "ViT": "vit_small_patch16_224",
    "DeiT3": "deit3_small_patch16_224",
    "BEiT": "beit_base_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
    "MLP-Mixer": "mixer_s32_224",
}
"""An architecture of each family, by timm's name."""


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in eval mode with nothing in it left at a value that does nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=generator).to(value)
            if name.endswith("running_var") or "gamma" in name:
                value.copy_(0.5 + noise)
            elif value.ndim == 1 and bool((value == value[0]).all()):
                value.add_(noise - 0.5)
    return model.eval()


def kind_of(site: Site) -> str:
    """Return the site's name without its numbers: `blocks.i.mlp.hook_post`."""
    return re.sub(r"(\.\d+)+", ".i", site.name)


def table(sites: Iterable[Site]) -> list[tuple[str, int, int, int, str]]:
    """Return for each kind: its name, number of sites, with readers, with a writer, an example."""
    kinds: dict[str, list[Site]] = {}
    for site in sites:
        kinds.setdefault(kind_of(site), []).append(site)
    rows = []
    for kind, members in kinds.items():
        read = [site for site in members if site.readers]
        written = [site for site in members if site.writers]
        shown = [f"{read[0].name} -> {', '.join(read[0].readers)}"] if read else []
        if written:
            path = " -> ".join((*written[0].writers, *written[0].affine))
            shown.append(f"{path} -> {written[0].name}")
        rows.append((kind, len(members), len(read), len(written), "; ".join(shown)))
    return rows


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| family | site | number | with readers | with a writer | for example |")
    print("|---|---|---|---|---|---|")
    for family, name in FAMILIES.items():
        torch.manual_seed(0)
        hooked = attach(randomized(timm.create_model(name, pretrained=False)))
        for kind, number, read, written, example in table(hooked.sites.values()):
            print(f"| {family} | `{kind}` | {number} | {read} | {written} | {example} |")


if __name__ == "__main__":
    main()
