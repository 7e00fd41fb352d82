"""The numbers that say how good one dictionary is, from one pass over the held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import L0_TOLERANCE
from salve_plugin.discover.training.rows import READ_ROWS
from salve_plugin.faces.one_line import one_line
from salve_plugin.validate import reconstruction
from salve_plugin.validate.amortization import amortization_gap
from salve_plugin.validate.dark_matter import dark_matter
from salve_plugin.validate.held_out import HeldOut
from salve_plugin.validate.monosemanticity import monosemanticity
from salve_plugin.validate.reconstruction import or_none
from salve_plugin.validate.separability import separability
from salve_plugin.validate.splicing import Splice
from salve_plugin.validate.stability import stability

PURSUIT_ROWS = 256
"""Held-out rows that are coded by pursuit, evenly spread; each costs L0 times as much as to encode.
"""

_LINEAR = 1e-3
"""Largest deviation of a decoder from z V + b_d, relative to the data's scale, that is rounding."""


@dataclass(frozen=True)
class Measures:
    """One dictionary in plain numbers; None is what was not measured or does not exist.

    All are of held-out rows. "Active" means |z| above 0.01 times the root of the training rows'
    mean squared distance from their mean.

    Attributes:
        n_latents: number of latents.
        r2: share of the variance that the reconstruction explains.
        fvu: share that it does not, 1 − R².
        l0: mean number of active latents of a row.
        dead_share: share of latents that are active in none of the rows.
        dense_share: share of latents that are active in more than a tenth of them.
        coherence: largest |cosine| of two atoms.
        nearest_cosine: largest |cosine| of an atom with another, averaged over atoms.
        cross_entropy: of the model with reconstructions spliced in, nats.
        accuracy: of that model.
        kl: KL(untouched model ‖ that model), nats.
        ce_recovered: see `Splice.ce_recovered`.
        accuracy_recovered: see `Splice.accuracy_recovered`.
        stability: mean cosine of atoms matched between seeds.
        stable_share: share of the atoms for which that exceeds 0.9.
        stability_null: `stability` of random atoms.
        signed_cosine: whether these cosines are signed: they are unless codes have both signs.
        monosemanticity: mean score MS of the latents that have one.
        monosemantic_latents: number of latents that have one.
        separability: mean class separability of the latents that have one, above chance.
        constant_latents: latents with the same code in all images, dead ones among them; they
            have no separability.
        error_r2: share of the error's variance that is linear in the activation.
        error_norm_r2: the same of the error's length.
        fvu_nonlinear: what of the FVU is not linear in the activation.
        amortization_gap: FVU of the encoder minus that of gradient pursuit at the same L0.
    """

    __repr__ = one_line

    n_latents: int
    r2: float
    fvu: float
    l0: float
    dead_share: float
    dense_share: float
    coherence: float
    nearest_cosine: float
    cross_entropy: float | None = None
    accuracy: float | None = None
    kl: float | None = None
    ce_recovered: float | None = None
    accuracy_recovered: float | None = None
    stability: float | None = None
    stable_share: float | None = None
    stability_null: float | None = None
    signed_cosine: bool | None = None
    monosemanticity: float | None = None
    monosemantic_latents: int | None = None
    separability: float | None = None
    constant_latents: int | None = None
    error_r2: float | None = None
    error_norm_r2: float | None = None
    fvu_nonlinear: float | None = None
    amortization_gap: float | None = None


@dataclass(frozen=True, eq=False)
class Latents:
    """What a dictionary makes of the held-out rows.

    Attributes:
        error: x − x̂ (rows, width).
        l0: active latents of each row (rows,).
        density: share of the rows in which each latent is active (latents,).
        by_image: of each image's codes of a latent, the largest in absolute value (images,
            latents); of codes that are never negative, that is the maximum over positions.
        signed: whether any code is negative.
    """

    error: Float[Tensor, "rows width"]
    l0: Float64[Tensor, " rows"]
    density: Float64[Tensor, " latents"]
    by_image: Float[Tensor, "images latents"]
    signed: bool

    @classmethod
    def of(cls, dictionary: Dictionary, data: HeldOut) -> "Latents":
        """Encode and decode the rows, some thousand at a time."""
        # Both extremes: which is larger in absolute value is known only after all rows of an image,
        # and these may lie in two chunks.
        high = torch.full((data.n_images, dictionary.n_latents), -torch.inf)
        low = torch.full_like(high, torch.inf)
        active = torch.zeros(dictionary.n_latents, dtype=torch.float64)
        errors, l0, tolerance = [], [], L0_TOLERANCE * data.scale
        for start in range(0, len(data.x), READ_ROWS):
            chunk = slice(start, start + READ_ROWS)
            codes, error = coded(dictionary, data.x[chunk])
            errors.append(error)
            l0.append(reconstruction.l0(codes, tolerance))
            active += reconstruction.density(codes, tolerance) * len(codes)
            image_index = data.images[chunk, None].expand_as(codes)
            high.scatter_reduce_(0, image_index, codes, "amax")
            low.scatter_reduce_(0, image_index, codes, "amin")
        # The larger in absolute value, with its sign; of equal ones the positive.
        by_image = torch.where(high >= -low, high, low)
        return cls(
            torch.cat(errors), torch.cat(l0), active / len(data.x), by_image, bool((low < 0).any())
        )


def coded(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (rows, latents) and errors x − x̂ (rows, width) in float32 on the CPU.

    Args:
        dictionary: on any device.
        x: activations (rows, width), on the CPU.
    """
    codes = dictionary.encode(x.to(dictionary.atoms.device))
    return codes.float().cpu(), x - dictionary.decode(codes).float().cpu()


def measures(
    dictionary: Dictionary,
    data: HeldOut,
    latents: Latents,
    *,
    embeddings: Float[Tensor, "images dim"] | None = None,
    seed: int = 0,
) -> Measures:
    """Measure all that needs neither the model nor another dictionary.

    Args:
        dictionary: which.
        data: rows to measure on.
        latents: of these rows.
        embeddings: of the images of `data`.
        seed: of the permutations of the labels.

    Raises:
        InputError: if a value is NaN or infinite, or the rows have no variance.
    """
    unexplained = reconstruction.fvu(data.x, latents.error)
    nearest = reconstruction.nearest_cosines(dictionary.atoms)
    measured = Measures(
        n_latents=dictionary.n_latents,
        r2=1 - unexplained,
        fvu=unexplained,
        l0=float(latents.l0.mean()),
        dead_share=reconstruction.dead_share(latents.density),
        dense_share=reconstruction.dense_share(latents.density),
        coherence=float(nearest.max()),
        nearest_cosine=float(nearest.mean()),
        amortization_gap=_gap(dictionary, data, latents),
    )
    measured = _with_separability(measured, latents, data, seed)
    if embeddings is not None:
        scores = monosemanticity(latents.by_image, embeddings)
        measured = replace(
            measured,
            monosemanticity=or_none(float(scores.nanmean())),
            monosemantic_latents=int(scores.isfinite().sum()),
        )
    # One row has no variance that a map could explain.
    if min(len(data.x), len(data.fit_x)) < 2:
        return measured
    chunks = torch.split(data.fit_x, READ_ROWS)
    fit_error = torch.cat([coded(dictionary, chunk)[1] for chunk in chunks])
    dark = dark_matter(data.fit_x, fit_error, data.x, latents.error)
    return replace(
        measured,
        error_r2=or_none(dark.error_r2),
        error_norm_r2=or_none(dark.norm_r2),
        fvu_nonlinear=dark.fvu_nonlinear,
    )


def with_splice(measured: Measures, splice: Splice) -> Measures:
    """Return the measures with what the model does with reconstructions."""
    return replace(
        measured,
        cross_entropy=splice.spliced.cross_entropy,
        accuracy=splice.spliced.accuracy,
        kl=splice.spliced.kl,
        ce_recovered=splice.ce_recovered,
        accuracy_recovered=splice.accuracy_recovered,
    )


def with_stability(
    measured: Measures,
    dictionary: Dictionary,
    others: Sequence[Dictionary],
    *,
    signed: bool,
    seed: int,
) -> Measures:
    """Return the measures with how alike other seeds' dictionaries are.

    Args:
        measured: so far.
        dictionary: whose measures these are.
        others: of the same site and size.
        signed: whether an atom and its negative are different.
        seed: of the random atoms that stability is compared with.

    Raises:
        InputError: as `stability`.
    """
    alike = stability(
        dictionary.atoms.cpu(), [other.atoms.cpu() for other in others], signed=signed, seed=seed
    )
    return replace(
        measured,
        stability=alike.cosine,
        stable_share=alike.same,
        stability_null=alike.null_cosine,
        signed_cosine=alike.signed,
    )


def _with_separability(measured: Measures, latents: Latents, data: HeldOut, seed: int) -> Measures:
    """Return the measures with class separability, if there are classes to separate."""
    # Of a single image a class has no histogram.
    if int((torch.bincount(data.labels) >= 2).sum()) < 2:
        return measured
    apart = separability(latents.by_image, data.labels, seed=seed)
    return replace(measured, separability=or_none(apart.mean), constant_latents=apart.n_excluded)


def _gap(dictionary: Dictionary, data: HeldOut, latents: Latents) -> float | None:
    """Return the amortization gap on some rows, None where codes are no sums of few atoms."""
    if float(latents.l0.mean()) > dictionary.width / 2:
        return None  # with about as many atoms as features, pursuit reaches any row exactly
    # From all over the rows, whose order is often that of the classes.
    sample = torch.linspace(0, len(data.x) - 1, min(len(data.x), PURSUIT_ROWS)).round().long()
    x = data.x[sample]
    codes, error = coded(dictionary, x)
    atoms, offset = dictionary.atoms.float().cpu(), dictionary.decoder_bias.float().cpu()
    # Pursuit takes x̂ = z V + b_d for granted, which a decoder with other terms is not.
    nonlinear = (x - error - (codes @ atoms + offset)).abs().max()
    if float(nonlinear) > _LINEAR * data.scale:
        return None
    return amortization_gap(x, codes, atoms, offset, tolerance=L0_TOLERANCE * data.scale)
