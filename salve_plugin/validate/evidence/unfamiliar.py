"""Which images are unlike a recording's: out-of-distribution scores as conformal p-values."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.rows import held_out
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular, percent
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch
from salve_plugin.validate.evidence.differing import check_recordings
from salve_plugin.validate.evidence.permuting import SIGNIFICANT


@dataclass(frozen=True, eq=False, repr=False)
class Unfamiliarity(Tabular):
    """How unlike a recording's images others are, as shares of that recording's own.

    Attributes:
        error_p: for each image the share of recorded ones whose worst row is rebuilt as badly,
            itself counted, (images,); uniform for images of the same kind.
        code_p: the same of the codes' distance from their mean, latent by latent in standard
            deviations.
    """

    error_p: Float64[Tensor, " images"]
    code_p: Float64[Tensor, " images"]

    def __repr__(self) -> str:
        """Say in one line how many images are unlike the recording's."""
        shares = [percent(float((p <= SIGNIFICANT).double().mean())) for p in self._both]
        return (
            f"<Unfamiliarity of {len(self.error_p)} images: beyond 95 % of the recording's are "
            f"{shares[0]} by reconstruction, {shares[1]} by code>"
        )

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.error_p, self.code_p

    def as_table(self) -> Table:
        """Return the images, the most unlike first."""
        order = torch.minimum(*self._both).argsort(stable=True).tolist()
        return Table(
            f"{len(order)} images beside the recording's",
            ("image", "p of the reconstruction", "p of the code"),
            [(image, float(self.error_p[image]), float(self.code_p[image])) for image in order],
        )


@torch.no_grad()
@without_autocast()
def unfamiliarity(
    dictionary: Dictionary,
    acts: Activations,
    others: Activations,
    *,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Unfamiliarity:
    """Score how far images are from a recording's, as conformal p-values.

    Mean and spread of the codes are those of one half of the recording's images, drawn from all of
    it whatever their order is, and scores are ranked among the other half, so that an image of the
    same kind is as likely at any rank. That holds where the dictionary has not been fitted to those
    images either: give a held-out recording. Conformal p-values are after Vovk et al. 2005; both
    scores are plain ones, not the best detectors.

    Args:
        dictionary: of the recordings' site.
        acts: of the images that count as familiar, at least four.
        others: of the images to score.
        on_base_mismatch: "warn" goes on with parts of different networks.

    Raises:
        InputError: if a recording is of another site, or `acts` has fewer than four images.
        BaseMismatchError: if dictionary and recordings are not of one network.
        ReadError: if a shard is missing or damaged.
    """
    check_recordings(dictionary, (acts, others), on_base_mismatch)
    if acts.n_images < 4:
        raise InputError(f"{acts.n_images} images make no distribution; record at least four")
    total = torch.zeros(2, dictionary.n_latents, dtype=torch.float64)
    rows = 0
    for batch in acts.batches(1024, keep=lambda images: ~held_out(images, 0.5)):
        codes = dictionary.encode(batch.x.to(dictionary.atoms.device)).cpu().double()
        total += torch.stack([codes.sum(0), codes.square().sum(0)])
        rows += len(codes)
    mean = total[0] / rows
    spread = (total[1] / rows - mean.square()).clamp(min=0).sqrt()
    # A latent that one half never switch on would make any code infinitely far.
    spread = spread.clamp(min=1e-3 * float(spread.max()) or 1.0)
    # Of the other half: an image that took part in the mean is nearer to it than a new one is.
    familiar = _scores(dictionary, acts, mean, spread)
    familiar = familiar[:, held_out(torch.arange(acts.n_images), 0.5)]
    scored = _scores(dictionary, others, mean, spread)
    error_p, code_p = (_conformal(scored[row], familiar[row]) for row in range(2))
    return Unfamiliarity(error_p, code_p)


def _scores(
    dictionary: Dictionary, acts: Activations, mean: Tensor, spread: Tensor
) -> Float64[Tensor, "two images"]:
    """Return each image's largest reconstruction error and code distance over its rows."""
    scores = torch.full((2, acts.n_images), -torch.inf, dtype=torch.float64)
    for batch in acts.batches(1024):
        codes = dictionary.encode(batch.x.to(dictionary.atoms.device))
        error = (batch.x - dictionary.decode(codes).float().cpu()).double().square().sum(1)
        distance = ((codes.cpu().double() - mean) / spread).square().mean(1)
        for row, values in enumerate((error, distance)):
            scores[row].scatter_reduce_(0, batch.images.long(), values, "amax")
    return scores


def _conformal(
    scores: Float64[Tensor, " images"], familiar: Float64[Tensor, " recorded"]
) -> Float64[Tensor, " images"]:
    """Return (1 + #{familiar >= score}) / (1 + recorded) of each score."""
    # From the left: a familiar score that is equal counts as reaching it.
    below = torch.searchsorted(familiar.sort().values, scores)
    return (1 + len(familiar) - below).double() / (1 + len(familiar))
