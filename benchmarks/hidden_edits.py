"""Where in ten families is a permanent edit of a hidden activation exact, and how exactly?

For each family and kind of site the first, middle and last site are edited at their readers and at
their writer, with a low-rank map of rank 2 with an offset (through the origin where an offset
is refused) and with a gate (readers only). Printed is the largest difference of a logit from the
same change made by a hook, relative to the spread of the logits, over all of these edits; beside it
the smallest effect that one of them has, in the same units: a difference means nothing without one.
Random weights in float32; BatchNorm statistics, LayerScale and biases are randomized too, so that
nothing is exact only because fresh weights do nothing.

    python benchmarks/hidden_edits.py
"""

import re
import warnings
from dataclasses import dataclass, field

import timm
import torch
from torch import nn

from salve_plugin import Exactness, Gate, HookedModel, LowRankMap, Site, attach, edit_at
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import Role
from salve_plugin.errors import UnsupportedModelError

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
            elif float(value.abs().max()) < 1e-3:  # a head that starts near zero tells nothing
                value.copy_(0.1 * (noise - 0.5))
    return model.eval()


def kind_of(site: Site) -> str:
    """Return the site's name without its numbers: `blocks.i.mlp.hook_post`."""
    return re.sub(r"(\.\d+)+", ".i", site.name)


@dataclass
class Row:
    """What was measured at the sites of one kind, on one side of them.

    Attributes:
        number: of sites, and of those that have such layers.
        edits: how many were made and measured.
        difference: the largest.
        effect: the smallest.
        notes: what was refused.
    """

    number: int = 0
    able: int = 0
    edits: int = 0
    difference: float = 0.0
    effect: float = float("inf")
    notes: set[str] = field(default_factory=set)

    def add(self, measured: Exactness) -> None:
        """Take one more edit into account."""
        self.edits += 1
        self.difference = max(self.difference, measured.difference)
        self.effect = min(self.effect, measured.effect)


def measure(hooked: HookedModel, site: Site, role: Role, row: Row) -> None:
    """Make edits of one site on one side and record how exact they are."""
    draw = torch.Generator().manual_seed(0)
    write, read = (torch.randn(site.width, 2, generator=draw) for _ in range(2))
    write, read = write / write.norm(dim=0), read / read.norm(dim=0)
    maps = [
        LowRankMap(write, read, torch.tensor([1.0, -1.0])),
        LowRankMap(write, read, torch.zeros(2)),
    ]
    for change in maps:
        try:
            row.add(exactness(edit_at(hooked, site, change, role=role)))
            break
        except UnsupportedModelError as error:
            row.notes.add("offset refused: " + ("padding" if "pads" in str(error) else "no bias"))
    if role == "reader":
        row.add(exactness(edit_at(hooked, site, Gate(read.T[:1], 4.0), role=role)))


def exactness(edit: Edit) -> Exactness:
    """Return what was measured when a hidden edit was made."""
    assert edit.exactness is not None
    return edit.exactness


def report(family: str, hooked: HookedModel) -> None:
    """Print the lines of one family."""
    kinds: dict[str, list[Site]] = {}
    for site in hooked.sites.values():
        if not set(site.readers) & set(hooked.heads):  # the head is linear in its input: proven
            kinds.setdefault(kind_of(site), []).append(site)
    for kind, members in kinds.items():
        rows: dict[Role, Row] = {"reader": Row(), "writer": Row()}
        for role, row in rows.items():
            able = [
                site for site in members if (site.readers if role == "reader" else site.writers)
            ]
            row.number, row.able = len(members), len(able)
            for site in {at: able[at] for at in (0, len(able) // 2, -1)}.values() if able else ():
                measure(hooked, site, role, row)
        if not any(row.able for row in rows.values()):
            print(f"| {family} | `{kind}` | {len(members)} | none | | | |")
        for role, row in rows.items():
            if row.able:
                layers = f"{role}{'s' if role == 'reader' else ''}, {row.able} of {row.number}"
                print(
                    f"| {family} | `{kind}` | {row.number} | {layers} | {row.difference:.1e} | "
                    f"{row.effect:.1e} | {'; '.join(sorted(row.notes))} |",
                    flush=True,
                )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, one thread, seed 0, 2 images of noise"
    )
    print("| family | site | sites | exact at | largest difference | smallest effect | |")
    print("|---|---|---:|---|---:|---:|---|")
    for family, name in FAMILIES.items():
        torch.manual_seed(0)
        report(family, attach(randomized(timm.create_model(name, pretrained=False))))


if __name__ == "__main__":
    main()
