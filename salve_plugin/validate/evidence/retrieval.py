"""How many of a latent's top images are of the class that it tells."""

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


def precision_at(
    codes: Float[Tensor, "images latents"], relevant: Bool[Tensor, "images latents"], k: int
) -> Float64[Tensor, " latents"]:
    """Return the share of relevant images among the k with the largest codes.

    Among images with equal codes the mean over all choices is taken: a sparse latent is off in
    most images, and their order in the recording, often by class, must not decide.

    Args:
        codes: of each image.
        relevant: whether the image is one that the latent is to find.
        k: 1 to the number of images.
    """
    least = codes.topk(k, dim=0).values[-1]
    above, ties = codes > least, codes == least
    left = k - above.sum(0)
    # Of the ties `left` are chosen, relevant in the mean as often as the ties are.
    hits = (above & relevant).sum(0) + left * (ties & relevant).sum(0) / ties.sum(0).double()
    return hits.double() / k


def precision_by_chance(
    permuted: Int64[Tensor, "permutations images"], k: int
) -> Float64[Tensor, "permutations 1"]:
    """Return the largest precision of any class among k random images.

    It does not depend on the latent. The latent's own class is one of those, so the null is no
    easier than what the latent was chosen for.
    """
    # The first k of a random order are k random images.
    chosen = permuted[:, :k]
    counts = torch.zeros(len(chosen), int(permuted.max()) + 1, dtype=torch.float64)
    counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
    return counts.amax(1, keepdim=True) / k
