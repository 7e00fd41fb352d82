r"""Folding latents: the affine map of x that takes out what some latents write.

Ablating latent l at run time is $x' = x - z_l(x)\,d_l$. If the encoder is affine, $z_l$ is an
affine function of x and the fold is exact; else the best affine stand-in for $z_l$ is folded, and
$R^2$ says how much of the latent survives that (its foldability).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.erasers.joint_moments import JointMoments
from salve_plugin.control.operators import LowRankMap
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError

SIGMA_FLOOR = 1e-3
"""Least standard deviation of a class-conditional density, as a share of the code's own."""


@dataclass(frozen=True, eq=False)
class FoldedLatents:
    """A folded ablation and how well it stands in for the real one.

    Attributes:
        map: what weights take over.
        foldability: R² of the affine stand-in for each latent's amount (latents,); 1 is exact.
    """

    map: LowRankMap
    foldability: Float64[Tensor, " latents"]


def fold_latents(
    dictionary: Dictionary, latents: Sequence[int], rows: Iterable[Tensor], *,
    to_mean: bool = True, shrinkage: float | None = 0.0,
) -> FoldedLatents:  # fmt: skip
    r"""Return the fold of latents: each code becomes its mean, or zero.

    Several latents are folded jointly: their codes are read off together, and what is taken out is
    the sum of what they write.

    Args:
        dictionary: of the site.
        latents: which.
        rows: activations of the site, (rows, width) pieces.
        to_mean: put the mean code in place of each, so that the mean of x stays; else zero.
        shrinkage: of the covariance, see `JointMoments.covariance`; of no use for an affine
            encoder.

    Raises:
        InputError: if a latent is out of range, or there are too few rows.
    """
    index = _checked(dictionary, latents)
    codes = _moments(dictionary, rows, lambda x: dictionary.encode(x)[:, index].double())
    atoms = dictionary.atoms.cpu().double()[index].T
    if dictionary.is_affine:
        # An affine code is readᵀx + b: with the offset -b all of it is taken out, with the reading
        # of the mean only what differs from the mean code.
        read = dictionary.encoder_weight.cpu().double()[index].T
        zero = -dictionary.encoder_bias.cpu().double()[index]
        offset = read.T @ codes.x_mean if to_mean else zero
        return FoldedLatents(
            LowRankMap(atoms, read, offset), torch.ones(len(index), dtype=torch.float64)
        )
    return _least_squares(atoms, codes, 0.0 if not to_mean else 1.0, shrinkage)


def fold_posterior(
    dictionary: Dictionary, latents: Sequence[int], rows: Iterable[tuple[Tensor, Tensor]], *,
    shrinkage: float | None = 0.0,
) -> FoldedLatents:  # fmt: skip
    r"""Return the best affine fold of attenuation by posterior probability.

    After APP (its formula is reconstructed from the abstract): a code is scaled by the probability
    that it does *not* come from the concept, $z' = z\,(1 - P(c \mid z))$ with
    $P(c \mid z) = \pi p(z \mid c) / (\pi p(z \mid c) + (1-\pi) p(z \mid \neg c))$ and Gaussian
    densities. That is no affine function of x: the fold is the least-squares one.

    Args:
        dictionary: of the site.
        latents: which.
        rows: (activations (rows, width), whether each has the concept (rows,)) pieces, read twice.
        shrinkage: as for `fold_latents`.

    Raises:
        InputError: if a latent is out of range, or rows with or without the concept are missing.
    """
    index, pieces = _checked(dictionary, latents), list(rows)
    codes = torch.cat([dictionary.encode(x)[:, index].cpu().double() for x, _ in pieces])
    has = torch.cat([has.bool().cpu() for _, has in pieces])
    if not bool(has.any()) or bool(has.all()):
        raise InputError(
            f"{int(has.sum())} of {len(has)} rows have the concept; give some with and some without"
        )
    posterior = _posterior(codes, has)
    read = iter(torch.split(codes * posterior, [len(x) for x, _ in pieces]))
    removed = JointMoments.of((x, next(read)) for x, _ in pieces)
    return _least_squares(dictionary.atoms.cpu().double()[index].T, removed, 0.0, shrinkage)


def _posterior(codes: Tensor, has: Tensor) -> Tensor:
    """Return P(concept | code) for each latent on its own, from two Gaussians."""
    # A latent that is silent in one group has no spread there, and a density without width would
    # make every other code infinitely unlikely.
    floor = SIGMA_FLOOR * codes.std(0) + torch.finfo(torch.float64).tiny
    logs = []
    for group in (codes[has], codes[~has]):
        sigma = group.std(0, correction=0).maximum(floor)
        prior = len(group) / len(codes)
        distance = ((codes - group.mean(0)) / sigma).square() / 2
        logs.append(math.log(prior) - sigma.log() - distance)
    # As a sigmoid of the difference: far from both means the densities themselves are both zero.
    return torch.sigmoid(logs[0] - logs[1])


def _least_squares(
    atoms: Float64[Tensor, "width latents"], amounts: JointMoments, kept: float,
    shrinkage: float | None,
) -> FoldedLatents:  # fmt: skip
    """Return the map that takes out the best affine stand-in for the amounts, but for their mean.

    Args:
        atoms: what one unit of each amount writes.
        amounts: moments of x and of the amounts to be taken out.
        kept: the share of each amount's mean that is put back.
        shrinkage: of the covariance.
    """
    # The pseudo-inverse, as features that never vary make the covariance singular without
    # shrinkage.
    inverse = torch.linalg.pinv(amounts.covariance(shrinkage), hermitian=True)
    read = inverse @ amounts.xz
    variance = amounts.zz.diagonal()
    tiny = torch.finfo(torch.float64).tiny
    # Of the stand-in's squared error, not read.T @ xz, which only is the explained variance without
    # shrinkage.
    error = variance - 2 * (read * amounts.xz).sum(0) + (read * (amounts.xx @ read)).sum(0)
    foldability = torch.where(variance > tiny, 1 - error / variance.clamp(min=tiny), 0.0)
    # So that what is taken out is readᵀ(x - E x) + (1 - kept) E z: with kept = 0 the least-squares
    # line itself, with kept = 1 only what differs from the mean.
    offset = read.T @ amounts.x_mean - (1 - kept) * amounts.z_mean
    return FoldedLatents(LowRankMap(atoms, read, offset), foldability)


def _checked(dictionary: Dictionary, latents: Sequence[int]) -> Tensor:
    index = torch.as_tensor(latents, dtype=torch.int64).flatten()
    inside = bool(((index >= 0) & (index < dictionary.n_latents)).all())
    if not len(index) or len(set(index.tolist())) < len(index) or not inside:
        raise InputError(
            f"latents {index.tolist()}: expected at least one from 0 to "
            f"{dictionary.n_latents - 1}, each once"
        )
    return index


@torch.no_grad()
def _moments(
    dictionary: Dictionary, rows: Iterable[Tensor], amounts: Callable[[Tensor], Tensor]
) -> JointMoments:
    def pieces() -> Iterator[tuple[Tensor, Tensor]]:
        for x in rows:
            yield x, amounts(x.to(dictionary.atoms.dtype)).cpu()

    return JointMoments.of(pieces())
