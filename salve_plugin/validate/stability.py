"""Do two trainings find the same atoms: matched cosines, beside those of random atoms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.reconstruction import check_finite

SAME = 0.9
"""Two atoms whose cosine exceeds this count as the same."""

SEED_OFFSET = 0x5A17E
"""Synthetic data are often drawn from the seeds 0, 1, 2: their atoms must not be ours by chance."""


@dataclass(frozen=True)
class Stability:
    """How alike two or more dictionaries of the same shape are.

    Attributes:
        cosine: mean cosine of an atom with the one that it is matched to, over all atoms and over
            the other dictionaries; 1 if they differ only in the order of their atoms.
        same: share of the atoms whose cosine with the matched one exceeds 0.9.
        null_cosine: `cosine` of random unit atoms of the same shape, what agreement by chance is.
        null_same: `same` of those.
        signed: whether an atom and its negative count as opposite (True) or as the same (False).
    """

    cosine: float
    same: float
    null_cosine: float
    null_same: float
    signed: bool


def matched_cosines(
    one: Float[Tensor, "latents width"], other: Float[Tensor, "others features"], *, signed: bool
) -> Float64[Tensor, " latents"]:
    """Return the cosine of each atom of `one` with the atom of `other` that it is matched to.

    Every atom is used once; of all such matchings this one has the largest sum (the Hungarian
    algorithm, as Fel et al. 2025 measure stability, "Archetypal SAE"). With n latents it takes
    memory n² and time n³: 0.1 s for 1000, some 10 s for 8000.

    Args:
        one: atoms; they need not have unit norm.
        other: atoms of another run.
        signed: False compares |cosine|, which suits codes of both signs: there z and the atom can
            be negated together.

    Raises:
        InputError: if the shapes differ, or an atom is zero, NaN or infinite.
    """
    from scipy.optimize import linear_sum_assignment

    if one.shape != other.shape:
        raise InputError(
            f"atoms of shape {tuple(one.shape)} and {tuple(other.shape)} cannot be matched one to "
            "one: train both runs at one site with the same number of latents"
        )
    # One to one, since a dictionary in which one atom occurs often would match every other well.
    cosines = _unit(one) @ _unit(other).T
    # Rounding leaves products of unit vectors just above 1.
    cosines = (cosines if signed else cosines.abs()).clamp(-1, 1).cpu()
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    return cosines[torch.from_numpy(rows), torch.from_numpy(columns)]


def stability(
    atoms: Float[Tensor, "latents width"],
    others: Sequence[Float[Tensor, "others features"]],
    *,
    signed: bool,
    seed: int = 0,
) -> Stability:
    """Compare atoms with those of other runs, and random atoms with random atoms.

    Runs that start from the same atoms are alike for that reason too: state the initialization.

    Args:
        atoms: of one run.
        others: of the other runs, each of the same shape.
        signed: as for `matched_cosines`.
        seed: of the random atoms.

    Raises:
        InputError: if there are no others, shapes differ, or an atom is zero, NaN or infinite.
    """
    if not others:
        raise InputError("stability needs at least one dictionary of another seed to compare with")
    cosines = torch.stack([matched_cosines(atoms, other, signed=signed) for other in others])
    null = matched_cosines(
        # Even and odd, so that no two seeds share random atoms.
        random_atoms(*atoms.shape, seed=2 * seed),
        random_atoms(*atoms.shape, seed=2 * seed + 1),
        signed=signed,
    )
    return Stability(*_summary(cosines), *_summary(null), signed)


def random_atoms(latents: int, width: int, *, seed: int) -> Float[Tensor, "latents width"]:
    """Return unit atoms of directions drawn uniformly from the sphere; a seed gives them again."""
    random = torch.Generator().manual_seed(SEED_OFFSET + seed)
    return torch.nn.functional.normalize(torch.randn(latents, width, generator=random), dim=1)


def _summary(cosines: Tensor) -> tuple[float, float]:
    return float(cosines.mean()), float((cosines > SAME).double().mean())


def _unit(atoms: Tensor) -> Float64[Tensor, "latents width"]:
    check_finite(atoms, "atoms")
    norms: Tensor = torch.linalg.vector_norm(atoms.double(), dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise InputError(
            f"atom {int((norms == 0).int().argmax())} is zero and has no direction; leave such "
            "atoms out"
        )
    return atoms.double() / norms
