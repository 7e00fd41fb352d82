"""Hook points of timm models."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import timm
from torch import Tensor, nn

from salve_plugin.adapter import Adapter
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT, Site

if TYPE_CHECKING:
    from PIL.Image import Image


class TimmAdapter(Adapter):
    """Every timm classifier."""

    def matches(self, model: nn.Module) -> bool:
        """Say whether `model` comes from timm."""
        return type(model).__module__.startswith("timm.models.")

    def attach(self, model: nn.Module) -> HookedModel:
        """Return the hooked model (first version: ResNet and VisionTransformer)."""
        if isinstance(model, timm.models.ResNet):
            sites = [
                Site(f"blocks.{i}.hook_resid_post", f"layer{i + 1}", "out", "nchw", width)
                for i, width in enumerate(info["num_chs"] for info in model.feature_info[1:])
            ]
            head = Site(HEAD_INPUT, "fc", "in", "pooled", model.fc.in_features, readers=("fc",))
            look = sites[-1]
        else:
            grid = model.patch_embed.grid_size
            tokens = {"prefix_tokens": model.num_prefix_tokens, "grid": grid}
            width = model.head.in_features
            sites = [
                Site(f"blocks.{i}.hook_resid_post", f"blocks.{i}", "out", "tokens", width, **tokens)
                for i in range(len(model.blocks))
            ]
            last = len(model.blocks) - 1
            look = Site(
                f"blocks.{last}.ln1.hook_normalized", f"blocks.{last}.norm1", "out", "tokens",
                width, **tokens,
            )  # fmt: skip
            sites.insert(last, look)
            head = Site(HEAD_INPUT, "head", "in", "pooled", width, readers=("head",))
        description = {"family": "timm", "architecture": type(model).__name__}
        return HookedModel(model, [*sites, head], attribution_site=look, description=description)

    def create(
        self, name: str, *, checkpoint: str | None = None, num_classes: int | None = None
    ) -> nn.Module:
        """Build a timm model by name."""
        raise NotImplementedError

    def transform(self, model: nn.Module) -> "Callable[[Image], Tensor]":
        """Return timm's evaluation transform."""
        raise NotImplementedError
