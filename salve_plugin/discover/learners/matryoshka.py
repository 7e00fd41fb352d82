"""Matryoshka: nested dictionaries, each of which must reconstruct on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.kernels.squared_error import squared_error
from salve_plugin.discover.learners.base import Architecture, Start, Tensors
from salve_plugin.discover.learners.batch_topk import BatchTopK
from salve_plugin.discover.learners.checks import above
from salve_plugin.discover.learners.registry import register
from salve_plugin.errors import InputError


@register
@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK codes; the loss is the mean over nested prefixes of the latents of ‖x − x̂‖².

    The first latents have to reconstruct alone, so they learn what is general; later ones add the
    particulars. A general latent then cannot leave to a particular one the rows that this one
    covers (absorption). The auxiliary loss learns from the error of the whole dictionary.

    Attributes:
        k: active latents of a row, on average.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
        groups: sizes of the groups of latents that the prefixes end after, as shares of all
            latents; what they leave over is the last group. Without any it is BatchTopK.
    """

    name: ClassVar[str] = "matryoshka"
    summary: ClassVar[str] = "BatchTopK whose first latents reconstruct alone: general ones first"
    source: ClassVar[str] = "Bussmann et al. 2025; Nabeshima 2024, Matryoshka sparse autoencoders"
    saelens: ClassVar[Architecture | None] = "jumprelu"
    groups: Sequence[float] = (1 / 32, 1 / 16, 1 / 8, 1 / 4)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        super().__post_init__()
        if not isinstance(self.groups, (list, tuple)):
            raise InputError(f"groups must be a list of shares of the latents, got {self.groups}")
        object.__setattr__(self, "groups", tuple(self.groups))  # JSON returns a list
        for share in self.groups:
            above(0, groups=share)
        if sum(self.groups) >= 1:
            raise InputError(
                f"groups {self.groups} add up to {sum(self.groups):g} and leave no latents to the "
                "last group; choose shares that add up to less than 1"
            )

    def sizes(self, n_latents: int) -> list[int]:
        """Return how many latents each group has; the prefixes end at their running sums.

        Raises:
            InputError: if a group would be empty.
        """
        sizes = [round(share * n_latents) for share in self.groups]
        sizes.append(n_latents - sum(sizes))
        if min(sizes) < 1:
            raise InputError(
                f"groups {self.groups} of {n_latents} latents have sizes {sizes}, and none may be "
                "empty; choose more latents, or fewer and larger groups"
            )
        return sizes

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors, and the threshold (latents,), which is not trained.

        Raises:
            InputError: if there are fewer than k latents, or a group would be empty.
        """
        self.sizes(start.n_latents)
        return super().prepare(start)

    def misfit(
        self, t: Tensors, x: Float[Tensor, "rows width"], code: Code
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows width"]]:
        """Return the mean over rows and prefixes of ‖x − x̂‖², and x − x̂ of all latents."""
        if not self.groups:
            return super().misfit(t, x, code)
        sizes = self.sizes(len(t["atoms"]))
        # A slice each would have a gradient as large as all atoms.
        atoms = torch.split(t["atoms"], sizes)
        parts = zip(blocks(code, sizes), atoms, strict=True)
        # A running sum decodes each group once, not once for every prefix that has it.
        sums = accumulate((z.decode(part) for z, part in parts), torch.add)
        errors = [squared_error(x, prefix, t["decoder_bias"]) for prefix in sums]
        return torch.stack([mean for mean, _ in errors]).mean(), errors[-1][1]


def blocks(code: Code, sizes: list[int]) -> list[Code]:
    """Return a sparse code's parts for consecutive groups of latents of these sizes."""
    support = code.support
    assert support is not None
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    group_of = group.to(support.latents.device)[support.latents]
    parts, first = [], 0
    for number, size in enumerate(sizes):
        inside = (group_of == number).nonzero().flatten()
        starts = torch.zeros_like(support.starts)
        # What is left stays in the order of its rows, so that counts tell where each begins.
        starts[1:] = torch.bincount(support.rows[inside], minlength=support.n_rows).cumsum(0)
        parts.append(
            Code(code.values[inside], Support(starts, support.latents[inside] - first, size))
        )
        first += size
    return parts
