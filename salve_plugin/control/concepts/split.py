"""Images dealt to blocks, so that every probe is judged on images that it was not fitted on."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from salve_plugin.control.concepts.evidence import ConceptEvidence, evidence_of
from salve_plugin.errors import InputError
from salve_plugin.integers import seed_number

BLOCKS = 8
"""Blocks of images: a probe that is judged on one block was fitted on the seven others, and halves
of the blocks are the half-samples of the stability selection."""

PERMUTATIONS = 20
"""Permuted labellings, each fitted and judged as the real one: what chance reaches."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images in blocks, with their real and their permuted labels.

    Attributes:
        labels: (images, 1 + permutations), 0 or 1; the first column is the real one.
        block: of each image (images,).
        group: of each image (images,), from 0.
        seed: of permutations and bootstrap.
    """

    labels: Float64[Tensor, "images columns"]
    block: Int64[Tensor, " images"]
    group: Int64[Tensor, " images"]
    seed: int

    @classmethod
    def of(cls, has: Tensor, groups: Tensor, seed: int) -> "Split":
        """Deal the groups to blocks and permute the labels.

        Raises:
            InputError: if all images come to one block, so that there is none to judge on, or the
                seed is none.
        """
        seed = seed_number(seed)
        random = torch.Generator().manual_seed(seed)
        permuted = [_permuted(has, groups, random) for _ in range(PERMUTATIONS)]
        labels = torch.stack([has, *permuted], 1).double()
        # Dealt apart, so that each block has images of both kinds wherever there are enough.
        block = torch.empty_like(groups)
        kind = torch.zeros(int(groups.max()) + 1, dtype=torch.int64)
        # A group with images of both kinds counts among those with the concept.
        kind[groups[has]] = 1
        for value in (0, 1):
            members = (kind == value).nonzero()[:, 0]
            order = torch.empty_like(kind)
            # In random order: images that come in turns would be dealt out class by class.
            members = members[torch.randperm(len(members), generator=random)]
            order[members] = torch.arange(len(members)) % BLOCKS
            mine = kind[groups] == value
            block[mine] = order[groups[mine]]
        # With fewer groups than blocks some numbers are not dealt: the rest are renumbered without
        # gaps, since every block up to the last has a probe of its own.
        used = torch.unique(block)
        if len(used) < 2:
            raise InputError(
                f"{len(torch.unique(groups))} groups leave no images to judge on: those with the "
                "concept, or those without it, are to be of at least two groups; give finer groups"
            )
        return cls(labels, torch.searchsorted(used, block), groups, seed)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return int(self.block.max()) + 1

    def evidence(self, scores: Float64[Tensor, "images columns"]) -> ConceptEvidence:
        """Return the evidence of held-out scores for each labelling."""
        flags = self.labels > 0.5
        null = scores[:, 1:], flags[:, 1:]
        return evidence_of(scores[:, 0], flags[:, 0], *null, self.group, seed=self.seed)


def group_indices(groups: object, n_images: int, *, paired: bool) -> Int64[Tensor, " images"]:
    """Return the group of each image, from 0; by default each image, or pair, is one of its own.

    Raises:
        InputError: unless there is one integer an image.
    """
    if groups is None:
        alone = torch.arange(n_images)
        return alone % (n_images // 2) if paired and n_images % 2 == 0 else alone
    try:
        given = torch.as_tensor(groups)
    except (TypeError, ValueError, RuntimeError):
        given = torch.zeros(0)  # names of files, for example
    if given.shape != (n_images,) or given.is_floating_point():
        raise InputError(
            f"groups is {groups!r:.80}; expected one integer for each of {n_images} images, such "
            "as the number of the photograph that it is from"
        )
    indices: Tensor = given.cpu().unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    return indices


def _permuted(has: Tensor, groups: Tensor, random: torch.Generator) -> Bool[Tensor, " images"]:
    """Return the labels permuted as chance could have dealt them."""
    n_groups = int(groups.max()) + 1
    share = torch.zeros(n_groups, dtype=torch.float64).index_add_(0, groups, has.double())
    count = torch.bincount(groups, minlength=n_groups)
    if bool(((share == 0) | (share == count)).all()):
        # Whole groups have it or not: so must they under the null.
        return (share > 0)[torch.randperm(n_groups, generator=random)][groups]
    # Groups of both kinds, such as pairs: labels change places within a group alone, since what
    # differs between groups is not up to chance.
    result = torch.empty_like(has)
    for group in range(n_groups):
        members = (groups == group).nonzero()[:, 0]
        result[members] = has[members[torch.randperm(len(members), generator=random)]]
    return result
