"""Does a latent tell classes apart: distance of its class-conditional histograms."""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.reconstruction import check_finite

BINS = 32
"""Bins of a latent's histogram between its smallest and its largest code."""

PERMUTATIONS = 2
"""Shuffles of the labels that the floor averages over."""

PAIRS = 200
"""With more pairs of classes than this, so many are drawn."""

_CODES = 2**22
"""Codes counted at once, or cells that they are counted in."""


@dataclass(frozen=True, eq=False)
class Separability:
    """How well each latent separates classes.

    Attributes:
        scores: of each latent, above its floor (latents,); NaN where the code is constant.
        floors: the mean distance with shuffled labels (latents,).
        n_excluded: number of constant latents, dead ones among them: 0/0, counted, not scored.
    """

    scores: Float64[Tensor, " latents"]
    floors: Float64[Tensor, " latents"]
    n_excluded: int

    @property
    def mean(self) -> float:
        """Mean score over the latents that have one; NaN if none has."""
        return float(self.scores.nanmean())


def separability(
    codes: Float[Tensor, "images latents"],
    labels: Int[Tensor, " labelled"],
    *,
    bins: int = BINS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Separability:
    """Return how far apart the classes' distributions of each latent are.

    For two classes, the distance is the square root of the Jensen-Shannon divergence in bits of
    the latent's histograms, between 0 (equal) and 1 (disjoint). From it is subtracted its floor,
    the distance with the labels of these two classes' images shuffled, because histograms of few
    images differ by chance; a latent's score is the mean over pairs of classes. (Labels shuffled
    among all classes would not do: they turn a latent that knows one class, and is silent in the
    others, into one that differs a little everywhere.) A latent that knows one of C classes scores
    2/C at most. After Fereidouni et al. 2025, "Evaluating
    Sparse Autoencoders for Monosemantic Representation", whose abstract names the distance; the
    mean over pairs and the floor are ours.

    Args:
        codes: one code for each image.
        labels: class of each image; a class with a single image is left out.
        bins: of equal width between the latent's smallest and largest code.
        permutations: of the labels, for the floor.
        seed: of the permutations, and of the choice of pairs if there are more than 200.

    Raises:
        InputError: if the lengths differ, a code is NaN or infinite, `bins` or `permutations` is
            not positive, or fewer than two classes have two images.
    """
    if len(codes) != len(labels):
        raise InputError(f"{len(codes)} codes, but {len(labels)} labels: one for each image")
    if bins < 2 or permutations < 1:
        raise InputError(f"bins={bins} must be at least 2, permutations={permutations} at least 1")
    check_finite(codes, "codes")
    classes = (torch.bincount(labels) >= 2).nonzero().flatten()
    if len(classes) < 2:
        raise InputError(
            f"{len(classes)} classes have two images or more; a distance between classes "
            "needs two such classes"
        )
    random = torch.Generator().manual_seed(seed)
    pairs = classes[_pairs(len(classes), random)]
    members = {int(label): (labels == label).nonzero().flatten() for label in classes}
    # The floor has to carry the same bias as the distance above it: with n images, histograms of
    # one and the same distribution differ the more the smaller n is. So each pair is shuffled
    # within itself, into groups of its own two sizes, and goes through the same histograms.
    true = _Groups.of([members[int(label)] for pair in pairs for label in pair])
    shuffled = [_Groups.of(_mixed(pairs, members, random)) for _ in range(permutations)]
    labelled = codes[torch.isin(labels, classes)]
    # One range for all classes and for the shuffled ones, so that bins mean the same everywhere.
    low, high = labelled.amin(0), labelled.amax(0)
    distances, floors = [], []
    # With few images it is the histograms that are large: a row of bins for each group and latent.
    size = max(1, _CODES // max(len(true.images), true.n * bins))
    for start in range(0, codes.shape[1], size):
        chunk = slice(start, start + size)
        places = _places(codes[:, chunk].double(), low[chunk], high[chunk], bins)
        distances.append(true.distances(places, bins))
        by_chance = [groups.distances(places, bins) for groups in shuffled]
        floors.append(torch.stack(by_chance).mean(0))
    constant = low == high
    floor = torch.cat(floors).masked_fill(constant, torch.nan)
    return Separability(torch.cat(distances) - floor, floor, int(constant.sum()))


@dataclass(frozen=True, eq=False)
class _Groups:
    """Pairs of groups of images: groups 0 and 1 are compared, 2 and 3, and so on.

    Attributes:
        images: the groups' images, one group after the other (members,).
        group: which group each is in (members,).
        n: number of groups.
    """

    images: Tensor
    group: Tensor
    n: int

    @classmethod
    def of(cls, groups: list[Tensor]) -> "_Groups":
        sizes = torch.tensor([len(group) for group in groups])
        return cls(
            torch.cat(groups), torch.arange(len(groups)).repeat_interleave(sizes), len(sizes)
        )

    def distances(self, places: Tensor, bins: int) -> Tensor:
        """Return the mean over pairs of √JSD of each latent's histograms (latents,)."""
        latents = places.shape[1]
        # Every (latent, group, bin) is one cell of one long count: bincount has no batches.
        cell = (torch.arange(latents) * self.n + self.group[:, None]) * bins + places[self.images]
        counts = torch.bincount(cell.flatten(), minlength=latents * self.n * bins).double()
        shares = counts.view(latents, self.n // 2, 2, bins)
        shares = shares / shares.sum(-1, keepdim=True)
        # JSD = entropy of the mixture − mean entropy of the two; rounding may leave [0, 1].
        divergence = _entropy(shares.mean(2)) - _entropy(shares).mean(2)
        return divergence.clamp(0, 1).sqrt().mean(1)


def _mixed(pairs: Tensor, members: dict[int, Tensor], random: torch.Generator) -> list[Tensor]:
    """Return for each pair two groups of the same sizes, drawn from both classes' images."""
    groups = []
    for first, second in pairs.tolist():
        images = torch.cat([members[first], members[second]])
        images = images[torch.randperm(len(images), generator=random)]
        groups += [images[: len(members[first])], images[len(members[first]) :]]
    return groups


def _pairs(n_classes: int, random: torch.Generator) -> Int[Tensor, "pairs 2"]:
    """Return pairs of different classes: all, or `PAIRS` of them."""
    if n_classes * (n_classes - 1) // 2 <= PAIRS:
        return torch.tensor(list(combinations(range(n_classes), 2)))
    first = torch.randint(n_classes, (PAIRS,), generator=random)
    # A distance from the first around the circle of classes, so that no pair is a class twice.
    further = torch.randint(1, n_classes, (PAIRS,), generator=random)
    return torch.stack([first, (first + further) % n_classes], dim=1)


def _places(codes: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Return the bin of each code (images, latents); constant latents have all in the first."""
    share = (codes - low) / torch.where(high > low, high - low, 1.0)
    return (share * bins).long().clamp(0, bins - 1)


def _entropy(shares: Tensor) -> Tensor:
    """Return the entropy in bits over the last axis."""
    # xlogy is 0 at 0, where the product would be NaN.
    return -torch.xlogy(shares, shares).sum(-1) / torch.log(torch.tensor(2.0, dtype=shares.dtype))
