"""How well codes stand for activations, how many latents take part, and how alike atoms are."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.errors import InputError

DENSE = 0.1
"""A latent active in more than this share of the rows counts as dense: such latents rarely mean
anything (the high-frequency features of Rajamanoharan et al. 2024, JumpReLU)."""

DECADES = 6
"""The density histogram covers shares of the rows from 10^-6 to 1."""

BINS_IN_DECADE = 4

_CHUNK = 1024


def fvu(x: Float[Tensor, "rows width"], error: Float[Tensor, "rows width"]) -> float:
    """Return the fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean(x)‖²; R² is 1 − FVU.

    It is 0 for a perfect reconstruction and 1 for the rows' own mean; computed in float64.

    >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [0.5]]))
    0.25

    Args:
        x: activations.
        error: x − x̂, the part that the reconstruction misses.

    Raises:
        InputError: if there is no variance to explain, or a value is NaN or infinite.
    """
    check_finite(x, "activations")
    check_finite(error, "reconstruction errors")
    # Of equal float32 rows exactly 0, since their sum and its quotient are exact in float64.
    variance = float((x.double() - x.double().mean(0)).square().sum()) if len(x) else 0.0
    if variance == 0:
        raise InputError(
            f"{len(x)} rows of activations have no variance, so no share of it is explained; "
            "measure on more, different images"
        )
    return float(error.double().square().sum()) / variance


def l0(codes: Float[Tensor, "rows latents"], tolerance: float) -> Float64[Tensor, " rows"]:
    """Return the number of active latents of each row: those with |z| > `tolerance`.

    A linear code is nowhere exactly zero, so that only a stated tolerance makes a number of it.

    >>> l0(torch.tensor([[0.0, -2.0, 0.5], [0.0, 0.0, 0.0]]), tolerance=0.1)
    tensor([2., 0.], dtype=torch.float64)
    """
    return (codes.abs() > tolerance).sum(1).double()


def density(codes: Float[Tensor, "rows latents"], tolerance: float) -> Float64[Tensor, " latents"]:
    """Return the share of the rows in which each latent is active, |z| > `tolerance`."""
    return (codes.abs() > tolerance).double().mean(0)


def dead_share(densities: Float64[Tensor, " latents"]) -> float:
    """Return the share of latents that are active in no row.

    It falls as rows are added; compare only numbers from the same rows.
    """
    return float((densities == 0).double().mean())


def dense_share(densities: Float64[Tensor, " latents"], above: float = DENSE) -> float:
    """Return the share of latents that are active in more than the share `above` of the rows."""
    return float((densities > above).double().mean())


def histogram_edges() -> Float64[Tensor, " edges"]:
    """Return the edges of the density histogram's bins as log10 of the density, from -6 to 0."""
    return torch.linspace(-DECADES, 0, DECADES * BINS_IN_DECADE + 1, dtype=torch.float64)


def density_histogram(densities: Float64[Tensor, " latents"]) -> Int64[Tensor, " bins"]:
    """Count living latents by log10 of their density, in the bins of `histogram_edges`.

    A bin includes its upper edge, so a latent active in every row is in the last one; densities
    below 10^-6 are in the first. Dead latents, whose logarithm is infinite, are left out: the sum
    of the counts is the number of living latents. After Bricken et al. 2023, "Towards
    Monosemanticity", who read two clusters of features off such a histogram.
    """
    # Rounded up, less one: an upper edge belongs to the bin below it.
    bin_numbers = ((densities[densities > 0].log10() + DECADES) * BINS_IN_DECADE).ceil().long() - 1
    bins = DECADES * BINS_IN_DECADE
    return torch.bincount(bin_numbers.clamp(0, bins - 1), minlength=bins)


def nearest_cosines(atoms: Float[Tensor, "latents width"]) -> Float64[Tensor, " latents"]:
    """Return for each atom the largest |cosine| with another atom; 0 if it is the only one.

    The largest of them is the dictionary's mutual coherence (Donoho & Huo 2001): 0 for orthogonal
    atoms, 1 if an atom occurs twice or with both signs.

    >>> nearest_cosines(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]]))
    tensor([0., 1., 1.], dtype=torch.float64)
    """
    # In float64: in float32 twins differ from 1 by as much as near twins do.
    unit = torch.nn.functional.normalize(atoms.double(), dim=1)
    nearest = torch.zeros(len(unit), dtype=torch.float64, device=unit.device)
    for start in range(0, len(unit), _CHUNK):
        cosines = (unit[start : start + _CHUNK] @ unit.T).abs()
        rows = torch.arange(len(cosines), device=unit.device)
        cosines[rows, rows + start] = 0  # an atom with itself
        nearest[start : start + _CHUNK] = cosines.amax(1)
    # Rounding may leave the cosine of twins just above 1.
    return nearest.clamp(max=1)


def check_finite(values: Tensor, name: str) -> None:
    """Check that every value, of a tensor of any shape, is finite.

    Raises:
        InputError: if one is NaN or infinite; `name` says what the values are.
    """
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise InputError(
            f"{name} hold {bad} NaN or infinite of {values.numel()} values; find and remove what "
            "made them, no measure means anything otherwise"
        )


def or_none(value: float) -> float | None:
    """Return the value, or None in place of NaN or infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
