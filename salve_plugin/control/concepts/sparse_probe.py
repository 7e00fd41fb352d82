"""Sparse probes: the few latents whose codes together tell a concept best."""

from itertools import combinations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.erasers.joint_moments import JointMoments
from salve_plugin.errors import InputError

RIDGE = 1e-3
"""Added to the correlation matrix of the chosen codes: two latents may be nearly the same."""

SCREENED = 2048
"""Latents that enter the selection; in larger dictionaries those whose codes vary most."""

HALVES = 20
"""Half-samples for the stability of a selection, or a few more: of the C(8, 4) = 70 halves of eight
blocks every third."""


def forward_selection(
    moments: JointMoments, count: int, column: int = 0
) -> tuple[Int64[Tensor, " latents"], Float64[Tensor, " latents"]]:
    """Return the latents that a greedy least-squares probe takes, and their weights.

    Orthogonal matching pursuit on standardized codes: each step takes the latent that correlates
    most with what is left of the concept, and fits all that were taken again (Tropp & Gilbert
    2007). It needs the codes' moments only.

    Args:
        moments: of codes (as x) and the concept's values (as z).
        count: latents to take; fewer if no further latent varies.
        column: of the values.

    Returns:
        Latents in the order taken, and the weight of each raw code in the score.
    """
    scale = moments.xx.diagonal().clamp(min=0).sqrt()
    # Standardizing would blow up a spread that is rounding to that of a code.
    varies = scale > 1e-9 * scale.max()
    inverse = torch.where(varies, 1 / scale.clamp(min=1e-300), 0.0)
    target = moments.xz[:, column] * inverse
    taken: list[int] = []
    weights = torch.zeros(0, dtype=torch.float64)
    for _ in range(min(count, int(varies.sum()))):
        index = torch.tensor(taken, dtype=torch.int64)
        # What is left correlates with every code by the moments alone: no row is read again.
        explained = (moments.xx[:, index] * inverse[:, None] * inverse[index]) @ weights
        left = (target - explained).abs()
        # Below any absolute value, so that neither constant codes nor taken ones win.
        left[~varies] = -1.0
        left[index] = -1.0
        taken.append(int(left.argmax()))
        index = torch.tensor(taken, dtype=torch.int64)
        gram = moments.xx[index][:, index] * inverse[index, None] * inverse[index]
        gram = gram + RIDGE * torch.eye(len(index), dtype=torch.float64)
        weights = torch.linalg.solve(gram, target[index])
    index = torch.tensor(taken, dtype=torch.int64)
    return index, weights * inverse[index]


def stable_selection(
    blocks: list[JointMoments], count: int
) -> tuple[Int64[Tensor, " latents"], Float64[Tensor, " latents"], Float64[Tensor, " latents"]]:
    """Return the latents that most half-samples choose, their weights, and how often each was.

    Stability selection (Meinshausen & Bühlmann 2010): one selection is a matter of luck where
    latents resemble each other; how often a latent is chosen on halves of the images tells which
    ones are meant. The weights are fitted on all images.

    Args:
        blocks: moments of codes and the concept's value on disjoint sets of images.
        count: latents to choose.

    Raises:
        InputError: if no latent's code goes with the concept at all.
    """
    halves = list(combinations(range(len(blocks)), len(blocks) // 2))
    # Spread over the list, in which neighbouring halves have most blocks in common.
    step = max(1, len(halves) // HALVES)
    chosen = halves[::step]
    times = torch.zeros(len(blocks[0].x_mean), dtype=torch.float64)
    for half in chosen:
        latents, _ = forward_selection(JointMoments.merged([blocks[i] for i in half]), count)
        times[latents] += 1
    # Counted and divided once: a sum of so many parts of 1 is not 1.
    times /= len(chosen)
    everything = JointMoments.merged(blocks)
    scale = everything.xx.diagonal().clamp(min=1e-300).sqrt()
    correlation = (everything.xz[:, 0] / scale).abs()
    # Among those chosen equally often, the one that correlates more; only then the lower index.
    order = sorted(range(len(times)), key=lambda i: (-float(times[i]), -float(correlation[i]), i))
    kept = torch.tensor([i for i in order[:count] if float(times[i]) > 0], dtype=torch.int64)
    latents, weights = kept, everything.xz.new_zeros(0)
    if len(kept):
        latents, weights = forward_selection(_part(everything, kept), len(kept))
    if not bool(weights.any()):
        raise InputError(
            f"none of {len(times)} latents has a code that varies with the concept, so that there "
            "is nothing to read it from: use a dictionary that was learned from such images, or "
            "leave dictionary out"
        )
    return kept[latents], weights, times[kept[latents]]


def _part(moments: JointMoments, kept: Tensor) -> JointMoments:
    return JointMoments(
        moments.n_rows, moments.x_mean[kept], moments.z_mean,
        moments.xx[kept][:, kept], moments.xz[kept], moments.zz,
    )  # fmt: skip
