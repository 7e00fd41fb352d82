"""Where training starts from: initial atoms, and the tied encoder that fits them best."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import CALIBRATION_ROWS, Learner, Start
from salve_plugin.discover.training.rows import Moments, RowReader
from salve_plugin.errors import InputError

INITIALIZATIONS = ("rows", "kmeans", "random")

SAMPLE_ROWS = 16384
"""Rows that k-means sees, if there are as many; more if there are more latents."""

KMEANS_ITERATIONS, KMEANS_SEED = 10, 0
"""k-means starts from the same rows whatever the seed: runs then differ by training alone."""


def start_of(
    data: RowReader,
    moments: Moments,
    rule: Learner,
    n_latents: int,
    *,
    initialization: str = "rows",
    seed: int = 0,
) -> Start:
    """Draw initial atoms and calibrate the encoder.

    `rows` are random training rows, minus their mean; `kmeans` are the centres of spherical k-means
    on a sample, with a fixed seed (equal ones, of few different rows, are moved apart); `random`
    are random directions. The encoder is the transpose of the atoms, times the one number that
    makes the learner's own reconstruction best.

    Raises:
        InputError: if there is no such initialization.
    """
    if initialization not in INITIALIZATIONS:
        raise InputError(
            f"no initialization {initialization!r}; choose one of {list(INITIALIZATIONS)}"
        )
    kmeans = initialization == "kmeans"
    size = max(2 * n_latents, SAMPLE_ROWS) if kmeans else max(n_latents, CALIBRATION_ROWS)
    order = KMEANS_SEED if kmeans else seed
    # The first batch of a shuffled pass is a random sample, of a long recording one of its random
    # blocks.
    rows = moments.scaled(next(data.training(size, shuffle_seed=order)))
    random = torch.Generator().manual_seed(order)
    noise = torch.randn(n_latents, rows.shape[1], generator=random)
    if kmeans:
        atoms = spherical_kmeans(rows, n_latents)
        atoms = atoms + _apart(noise) * _useless(atoms)[:, None]
    elif initialization == "random":
        atoms = noise
    else:
        # Equal rows would give equal atoms, which equal gradients never part.
        atoms = rows[:n_latents] + _apart(noise)
    atoms = functional.normalize(atoms, dim=1)
    gain = _gain(rule, rows[:CALIBRATION_ROWS], atoms)
    return Start(rows, atoms, gain, random)


def _apart(noise: Tensor) -> Tensor:
    """Return what tells equal atoms apart, of norm 0.01."""
    return 0.01 / math.sqrt(noise.shape[1]) * noise


def _useless(atoms: Tensor) -> Tensor:
    """Say which atoms are zero or as good as equal to an earlier one."""
    # In blocks of rows: the cosines of all pairs at once are a matrix of latents by latents.
    numbers = torch.arange(len(atoms))
    useless: Tensor = torch.linalg.vector_norm(atoms, dim=1) < 0.5
    for mine, part in zip(torch.split(numbers, 1024), torch.split(atoms, 1024), strict=True):
        # Equal directions in float32 miss a cosine of 1 by about 1e-6. A cosine of 1 - 1e-5 is a
        # distance of 0.0045, less than `_apart` moves what is found here.
        alike = part @ atoms.T > 1 - 1e-5
        useless[mine] |= (alike & (numbers < mine[:, None])).any(1)
    return useless


def _gain(rule: Learner, rows: Tensor, atoms: Tensor) -> float:
    """Return by how much the tied code must be multiplied for the best reconstruction."""
    reconstruction = rule.initial_code(rows @ atoms.T) @ atoms
    size = float(reconstruction.square().sum())
    # Least squares for x ≈ g x̂. It is exact where the code grows in proportion to the
    # pre-activations, as that of ReLU and of TopK does while the biases are zero.
    gain = float((reconstruction * rows).sum()) / size if size > 0 else 1.0
    # Not above zero, it would turn the encoder against its own atoms, or silence it.
    return gain if gain > 0 else 1.0


def spherical_kmeans(
    rows: Float[Tensor, "rows width"], n: int, iterations: int = KMEANS_ITERATIONS
) -> Float[Tensor, "n width"]:
    """Return n unit vectors such that rows have a large cosine with the nearest.

    Lloyd's iterations with cosines (Dhillon & Modha 2001): each row goes to the centre of largest
    cosine, each centre becomes the direction of its rows' sum. A centre without rows takes the row
    that is worst represented. It starts from the first n rows and draws nothing.

    Raises:
        InputError: if there are fewer rows than centres.
    """
    if n > len(rows):
        raise InputError(f"{len(rows)} rows are too few for {n} centres")
    rows = functional.normalize(rows, dim=1)
    centres = rows[:n].clone()
    for _ in range(iterations):
        # In parts: the cosines of all rows with all centres can be many times as large as the rows.
        parts = [(part @ centres.T).max(1) for part in torch.split(rows, 4096)]
        cosines = torch.cat([part.values for part in parts])
        nearest = torch.cat([part.indices for part in parts])
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        empty = torch.linalg.vector_norm(sums, dim=1) == 0
        # The zero vector is nearest to hardly any row, so that an empty centre would stay empty.
        sums[empty] = rows[cosines.argsort(stable=True)[: int(empty.sum())]]
        centres = functional.normalize(sums, dim=1)
    return centres
