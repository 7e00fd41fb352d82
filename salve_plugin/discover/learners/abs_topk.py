"""AbsTopK: exactly k latents in each row, of either sign."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.kernels.selection import largest
from salve_plugin.discover.kernels.sparse import Support
from salve_plugin.discover.learners.base import Step, Tensors
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.topk import TopK


@register
@dataclass(frozen=True)
class AbsTopK(TopK):
    """z keeps the k of E x + b_e that are largest in size, with their signs; loss as TopK.

    One latent then stands for two opposite concepts, where TopK needs one for each. The auxiliary
    loss, which the paper does not use, takes the dead latents that are largest in size.

    Attributes:
        k: active latents of a row.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
    """

    name: ClassVar[str] = "abs_topk"
    summary: ClassVar[str] = "keeps the k activations of largest size with their signs"
    source: ClassVar[str] = "Zhu et al. 2025, AbsTopK, arXiv 2510.00404"
    signed: ClassVar[bool] = True
    by_size: ClassVar[bool] = False

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Keep the k pre-activations of largest size in each row."""
        latents = pre.abs().topk(min(self.k, pre.shape[-1]), dim=-1).indices
        return torch.zeros_like(pre).scatter(-1, latents, pre.gather(-1, latents))

    def initial_code(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """Keep the k pre-activations of largest size in each row."""
        return self.activate({}, pre)

    def select(self, pre: Float[Tensor, "rows latents"], t: Tensors, step: Step) -> Support:
        """Return which latents of a training batch are kept."""
        # What `largest` returns are sizes: the values with their signs are gathered later.
        return Support.of_indices(largest(pre.abs(), self.k)[1], pre.shape[1], None, step.scratch)
