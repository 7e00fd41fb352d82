"""Do the images that activate a latent look alike: the monosemanticity score."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.reconstruction import check_finite

_CHUNK = 512
_NEGLIGIBLE = 1e-9
"""Weights of pairs, relative to the largest possible one of a pair, that rounding could explain."""


def monosemanticity(
    codes: Float[Tensor, "images latents"], embeddings: Float[Tensor, "embedded dim"]
) -> Float64[Tensor, " latents"]:
    """Return the monosemanticity score MS of each latent.

    With a_i the latent's code of image i, scaled to [0, 1] over the images, and e_i the image's
    embedding, MS = Σ_{i<j} a_i a_j cos(e_i, e_j) / Σ_{i<j} a_i a_j: the mean similarity of two
    images, weighted by how strongly both activate the latent (Pach et al. 2025, "Sparse
    Autoencoders Learn Monosemantic Features in Vision-Language Models"). With embeddings of unit
    norm, numerator and denominator are ½(‖Σ a_i e_i‖² − Σ a_i²) and ½((Σ a_i)² − Σ a_i²), so the
    pairs are never formed. Computed in float64.

    The score is 1 for a latent that is active only in images with one embedding, and about
    `mean_cosine(embeddings)` for one that does not care. Scaling leaves only one direction: for a
    latent with codes of both signs, it tells about the positive pole.

    Args:
        codes: one code for each image.
        embeddings: of the same images, by another network than the one that is explained.

    Returns:
        NaN for a latent with the same code in all images or active in a single one, where no pair
        exists.

    Raises:
        InputError: if the lengths differ, a value is NaN or infinite, or an embedding is zero.
    """
    if len(codes) != len(embeddings):
        raise InputError(
            f"{len(embeddings)} embeddings for {len(codes)} images: there must be one for each "
            "image, in the same order"
        )
    check_finite(codes, "codes")
    unit = _unit(embeddings)
    chunks = torch.split(codes, _CHUNK, dim=1)
    return torch.cat([_scores(chunk.double().to(unit.device), unit) for chunk in chunks])


def mean_cosine(embeddings: Float[Tensor, "images dim"]) -> float:
    """Return the mean cosine of two different images' embeddings: the MS of an indifferent latent.

    Raises:
        InputError: if there are fewer than two, a value is NaN or infinite, or one is zero.
    """
    if len(embeddings) < 2:
        raise InputError(f"{len(embeddings)} embeddings make no pair of images; give two or more")
    unit = _unit(embeddings)
    return (float(unit.sum(0).square().sum()) - len(unit)) / (len(unit) * (len(unit) - 1))


def _scores(codes: Tensor, unit: Tensor) -> Tensor:
    low, high = codes.amin(0), codes.amax(0)
    weights = (codes - low) / (high - low)  # NaN where a latent is constant
    # (Σ a)² is the sum over all ordered pairs (i, j) with those of i = j, which are Σ a²; the rest
    # counts each pair of different images twice. Likewise ‖Σ a e‖², where i = j gives a² ‖e‖² = a².
    # So n images cost n, not n², and the factor ½ of both sums cancels in their ratio.
    squares = weights.square().sum(0)
    similar = (weights.T @ unit).square().sum(1) - squares
    pairs = weights.sum(0).square() - squares
    # Active in one image alone, both differences are zero but for rounding; NaN compares false.
    return torch.where(pairs > _NEGLIGIBLE, similar / pairs, torch.nan)


def _unit(embeddings: Tensor) -> Float64[Tensor, "images dim"]:
    check_finite(embeddings, "embeddings")
    norms: Tensor = torch.linalg.vector_norm(embeddings.double(), dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise InputError(
            f"the embedding of image {int((norms == 0).int().argmax())} is zero and has no "
            "direction; use a network that tells the images apart"
        )
    return embeddings.double() / norms
