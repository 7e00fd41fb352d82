"""Hooked models that are TransformerLens' own `HookedRootModule`, with its own hook points.

Import this module only where transformer_lens is installed; `attach` does so by itself.
"""

from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint

from salve_plugin.hooks import HookedModel

__all__ = ["HookedRootModule", "LensHookedModel", "with_lens"]

try:
    from transformer_lens.HookedRootModule import HookedRootModule  # 3.0 and later
except ImportError:
    from transformer_lens.hook_points import HookedRootModule  # 2.x


class LensHookedModel(HookedRootModule, HookedModel):  # type: ignore[misc] # TransformerLens is untyped here
    """A hooked model on which TransformerLens' tools work unchanged.

    Its `run_with_cache`, `run_with_hooks`, `hooks` and the like are TransformerLens' methods;
    sites, `unembed` and the forward pass are `HookedModel`'s.

    TransformerLens keeps functions at hook points that all threads share, also those that are there
    for one call: use these methods from one thread at a time, or `attach` the model once more for
    each thread. What this library does by itself (`record`, `maximize`, `LayerGradFam`, `quality`)
    does not go through hook points and is safe.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `HookedModel` takes."""
        # HookedRootModule's own constructor sets just these two, then calls the next one
        # in line without arguments, which HookedModel's needs.
        HookedModel.__init__(self, *args, **kwargs)
        self.is_caching = False
        self.context_level = 0

    def setup(self) -> None:
        """Make the hook points; unlike TransformerLens, name no module of the bare model."""
        HookedModel.setup(self)
        self.mod_dict = dict(self.hook_dict)

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Do as TransformerLens does, in eval mode; the model is left as it was found."""
        with self._cached(args, kwargs) as inputs:
            return HookedRootModule.run_with_cache(self, *inputs, **kwargs)

    def _make_point(self) -> nn.Module:
        point: nn.Module = HookPoint()
        return point


def with_lens(hooked: HookedModel) -> HookedModel:
    """Return the hooked model as a `HookedRootModule`, over the same bare model."""
    if isinstance(hooked, LensHookedModel):
        return hooked
    return LensHookedModel(
        hooked.model,
        list(hooked.sites.values()),
        attribution_site=hooked.attribution_site,
        description=hooked.description,
        heads=hooked.heads,
        probe=hooked.probe,
    )
