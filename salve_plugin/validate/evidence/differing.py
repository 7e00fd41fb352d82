"""Which latents differ between two recordings: two data sets, or one before and after."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_read
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.integers import seed_number, whole
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch, check_one_network
from salve_plugin.validate.activity import codes_by_image
from salve_plugin.validate.evidence.permuting import SIGNIFICANT, p_values, upper

_MOST_CODES = 2**25
"""Codes of all images that are in memory at once."""


@dataclass(frozen=True, eq=False, repr=False)
class LatentDifference(Tabular):
    """How latents differ between two recordings, with what chance gives.

    An image's code is its largest over positions.

    Attributes:
        shift: mean code in the second recording minus that in the first, in standard deviations
            over the images of both, (latents,); 0 for a constant latent.
        null: the largest absolute shift of any latent that 95 % of permutations of the images
            between the recordings have.
        p: permutations in which a latent shifts as far.
        p_all: permutations in which any latent does: as many latents as there are is accounted for.
        n_images: of the two recordings.
    """

    shift: Float64[Tensor, " latents"]
    null: float
    p: Float64[Tensor, " latents"]
    p_all: Float64[Tensor, " latents"]
    n_images: tuple[int, int]

    def __repr__(self) -> str:
        """Say in one line how many latents differ."""
        differ = int((self.p_all <= SIGNIFICANT).sum())
        return (
            f"<LatentDifference: {differ} of {len(self.shift)} latents differ beyond chance "
            f"between {self.n_images[0]} and {self.n_images[1]} images>"
        )

    def as_table(self) -> Table:
        """Return the latents, the most different first."""
        order = self.shift.abs().argsort(descending=True, stable=True).tolist()
        return Table(
            f"{len(order)} latents in {self.n_images[0]} and {self.n_images[1]} images",
            ("latent", "shift", "p", "p, all latents"),
            [(i, float(self.shift[i]), float(self.p[i]), float(self.p_all[i])) for i in order],
            (f"largest shift of any latent by chance, in 1 of 20 cases: {self.null:.4g}",),
        )


@torch.no_grad()
@without_autocast()
def compare_recordings(
    dictionary: Dictionary,
    first: Activations,
    second: Activations,
    *,
    permutations: int = 200,
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> LatentDifference:
    """Say which latents differ between two sets of images of one network.

    Permutations deal all images out anew between the two; the largest shift of all latents in each
    is what the best of so many gets by chance (Westfall & Young 1993, maxT).

    Args:
        dictionary: of the recordings' site.
        first: one recording.
        second: the other one.
        permutations: of the images.
        seed: of the permutations.
        on_base_mismatch: "warn" goes on with parts of different networks.

    Raises:
        InputError: if a recording is of another site, or `permutations` is not positive.
        BaseMismatchError: if dictionary and recordings are not of one network.
        ReadError: if a shard is missing or damaged.
    """
    permutations, seed = whole(permutations, "permutations", least=1), seed_number(seed)
    check_recordings(dictionary, (first, second), on_base_mismatch)
    counts = first.n_images, second.n_images
    total = sum(counts)
    random = torch.Generator().manual_seed(seed)
    # Each order as what it adds to mean(second) - mean(first): the true one first.
    weights = torch.empty(1 + permutations, total, dtype=torch.float64)
    weights[:, : counts[0]], weights[:, counts[0] :] = -1 / counts[0], 1 / counts[1]
    # The same orders for every block of latents, as maxT needs, without a copy of all codes each.
    for row in weights[1:]:
        row[:] = row[torch.randperm(total, generator=random)]
    size = max(1, _MOST_CODES // total)
    shifts, p, maxima = [], [], torch.zeros(permutations, dtype=torch.float64)
    for start in range(0, dictionary.n_latents, size):
        block = slice(start, start + size)
        codes = torch.cat([image_codes(dictionary, acts, block) for acts in (first, second)])
        # Equal codes give exactly 0 here, and no spread: a sum of float32 numbers is exact in
        # float64 up to 2**29 of them, and so is its quotient.
        centred = codes.double() - codes.double().mean(0)
        spread = centred.square().mean(0).sqrt()
        shift = torch.where(spread > 0, weights @ centred / spread.clamp(min=1e-300), 0.0)
        null = shift[1:].abs()
        shifts.append(shift[0])
        p.append(p_values(shift[0].abs(), null))
        # Orders are the same for every block, so that each maximum is over all latents in one
        # order.
        maxima = torch.maximum(maxima, null.amax(1))
    joined = torch.cat(shifts)
    return LatentDifference(
        joined, float(upper(maxima[:, None])[0]), torch.cat(p),
        p_values(joined.abs(), maxima[:, None]), counts,
    )  # fmt: skip


def image_codes(
    dictionary: Dictionary, acts: Activations, block: slice
) -> Float[Tensor, "images some"]:
    """Return the largest code of each image for a block of latents."""
    count = len(range(dictionary.n_latents)[block])
    codes = torch.empty(acts.n_images, count, dtype=torch.float32)
    signs = torch.ones(dictionary.n_latents, dtype=torch.float32)
    for images, strongest in codes_by_image(dictionary, acts, signs):
        codes[images] = strongest[:, block]
    return codes


def check_recordings(
    dictionary: Dictionary, recordings: tuple[Activations, Activations], mismatch: OnBaseMismatch
) -> None:
    """Raise unless both recordings are of the dictionary's site and network.

    Raises:
        InputError: if one is of another site.
        BaseMismatchError: if one is of another network.
    """
    for acts in recordings:
        check_read(dictionary, acts)
    first, second = recordings
    parts = {"the dictionary": dictionary.network, "the first recording": first.network_sha256}
    check_one_network({**parts, "the second recording": second.network_sha256}, mismatch)
