"""EfficientNet-Lite0 from its 14 x 14 stage on, so that pictures are run through the rest once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cutouts import Cutout
from salve_plugin import HookedModel, Site

MIDDLE, LAST, HEAD = "blocks.4.hook_resid_post", "ln_final.hook_normalized", "unembed.hook_in"
"""14 x 14 x 112, 7 x 7 x 1280 and their mean, at 224 px."""


class Rest(nn.Module):
    """What follows the stage; its input is the stage's output."""

    def __init__(self, network: Any) -> None:
        """Take the layers of a whole network."""
        super().__init__()
        self.middle = nn.Identity()
        self.deep = nn.Sequential(
            network.blocks[5], network.blocks[6], network.conv_head, network.bn2
        )
        self.pool, self.classifier = network.global_pool, network.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.pool(self.deep(self.middle(x))))
        return logits


def attached(network: nn.Module) -> HookedModel:
    """Return the rest of the network with its three sites."""
    middle = Site(MIDDLE, "middle", "out", "nchw", 112)
    last = Site(LAST, "deep", "out", "nchw", 1280)
    head = Site(HEAD, "classifier", "in", "pooled", 1280, readers=("classifier",))
    rest = Rest(network).eval().requires_grad_(False)
    return HookedModel(rest, [middle, last, head], attribution_site=last, description={})


@torch.no_grad()
def until_middle(network: Any, images: Tensor) -> Tensor:
    """Return the stage's output for images in [0, 1]."""
    x: Tensor = (2 * images - 1).contiguous(memory_format=torch.channels_last)
    x = network.bn1(network.conv_stem(x))
    for stage in network.blocks[:5]:
        x = stage(x)
    return x.contiguous()


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures as the stage sees them.

    Attributes:
        middle: (pictures, 112, 14, 14).
        large: of the same pictures at 448 px, (pictures, 112, 28, 28); empty for training.
        masks: (pictures, 448, 448); empty for training.
        stamps: (pictures,).
        classes: the accepted class with the largest logit, which is explained.
        known: whether it is among the first five.
    """

    middle: Tensor
    large: Tensor
    masks: Tensor
    stamps: Tensor
    classes: Tensor
    known: Tensor

    @classmethod
    def of(
        cls, network: nn.Module, hooked: HookedModel, cutouts: Sequence[Cutout],
        accepted: Sequence[Sequence[int]], *, tested: bool,
    ) -> "Seen":  # fmt: skip
        """Run pictures up to the stage, and through the rest for their logits."""
        images = torch.stack([cutout.image for cutout in cutouts])
        small = nn.functional.avg_pool2d(images, 2)
        middle = until_middle(network, small)
        with torch.no_grad():
            logits = hooked(middle)
        classes = torch.tensor(
            [max(accepted[c.stamp], key=lambda k, row=row: float(row[k]))  # type: ignore[misc]
             for c, row in zip(cutouts, logits, strict=True)]
        )  # fmt: skip
        own = logits.gather(1, classes[:, None])
        known = (logits > own).sum(1) < 5
        masks = torch.stack([cutout.mask for cutout in cutouts])
        large = until_middle(network, images[known]) if tested and known.any() else middle[:0]
        stamps = torch.tensor([cutout.stamp for cutout in cutouts])
        if not tested:
            return cls(middle, large, masks[:0], stamps, classes, known)
        return cls(middle[known], large, masks[known], stamps[known], classes[known], known[known])

    @classmethod
    def joined(cls, parts: Sequence["Seen"]) -> "Seen":
        """Return the pictures of all parts."""
        names = ("middle", "large", "masks", "stamps", "classes", "known")
        parts = [part for part in parts if len(part.stamps)]
        grouped = [[getattr(part, name) for part in parts] for name in names]
        return cls(*(torch.cat([t for t in ts if len(t)] or ts[:1]) for ts in grouped))

    def __getitem__(self, rows: Tensor) -> "Seen":
        """Return the named pictures."""
        large, masks = (t[rows] if len(t) else t for t in (self.large, self.masks))
        return Seen(
            self.middle[rows], large, masks, self.stamps[rows], self.classes[rows], self.known[rows]
        )
