"""A concept as a value: which rows of a recording have it, and how that is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.concepts.evidence import ConceptEvidence, over_images
from salve_plugin.control.erasers import Centre, JointMoments, PairMoments
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations, Batch
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import shortened
from salve_plugin.site import Site

ROWS = 4096
"""Rows of a recording that are read at a time."""

Source = Literal["labels", "sparse probe", "latent", "direction"]


@dataclass(frozen=True)
class ConceptLatent:
    """One of the latents that a concept is read from.

    Attributes:
        index: in the dictionary.
        share: of the score's variation that its code carries, in [0, 1]; shares sum to 1.
        stability: on which share of half-samples of the images it was chosen.
        image: the recorded image in which its code is strongest, to look at.
    """

    index: int
    share: float
    stability: float
    image: int


@dataclass(frozen=True, eq=False, repr=False)
class Concept:
    """Something that pictures have or have not, as a site of one network holds it.

    `find_concept`, `latent_concept` and `direction_concept` make concepts; `erase` removes them.

    Attributes:
        name: in sentences.
        source: what the values are: "labels" (0 or 1), the score of a "sparse probe" on codes, the
            code of one "latent", the projection on a "direction".
        recordings: of the images that it was found on, all of one site and network.
        values: of each row, over all recordings in order (rows,), float64.
        has: of each image, whether it has the concept; None if nobody has said.
        read: a linear read-out, (width,): `read @ x` is higher with the concept.
        groups: of images that belong together (images,), from 0: pairs, crops of one photograph.
        latents: those that the score is made of, by share.
        dictionary: that they are of.
        evidence: how well held-out images are told apart; None without `has`.
    """

    name: str
    source: Source
    recordings: tuple[Activations, ...]
    values: Float64[Tensor, " rows"]
    has: Bool[Tensor, " images"] | None
    read: Float64[Tensor, " width"]
    groups: Int64[Tensor, " images"]
    latents: tuple[ConceptLatent, ...] = ()
    dictionary: Dictionary | None = None
    evidence: ConceptEvidence | None = None

    @property
    def site(self) -> Site:
        """Where it was found."""
        return self.recordings[0].site

    @property
    def network(self) -> str | None:
        """The network that it belongs to, see `Activations.network_sha256`."""
        return self.recordings[0].network_sha256

    @property
    def n_images(self) -> int:
        """Number of images of all recordings."""
        return sum(acts.n_images for acts in self.recordings)

    @property
    def note(self) -> str:
        """How it was found, in a few words."""
        named = ", ".join(f"{latent.index} ({latent.share:.0%})" for latent in self.latents)
        how = f"{self.source}{' of latents ' + named if named else ''}, {self.n_images} images"
        if self.evidence is not None:
            how += f", held-out AUC {self.evidence.auc:.3f} (chance {self.evidence.null_auc:.3f})"
        return f"'{self.name}': {how}"[:1000]

    def __repr__(self) -> str:
        """Say in one line what it is and how well it is detected."""
        return shortened(f"<Concept of '{self.site.name}': {self.note}>")

    def rows(self) -> Iterator[tuple[Batch, Float64[Tensor, " rows"]]]:
        """Yield all rows with their values; images are numbered over all recordings."""
        return rows_of(self.recordings, self.values)

    @property
    def is_paired(self) -> bool:
        """Whether image i of the first recording is image i of the second, without the concept.

        Two recordings of the same labels, unless `groups` says that the two do not belong together.
        """
        labels = {acts.labels_sha256 for acts in self.recordings}
        if len(self.recordings) != 2 or len(labels) != 1:
            return False
        with_, without = self.groups.chunk(2)
        return with_.equal(without)

    def flags(self) -> Bool[Tensor, " images"]:
        """Return which images have the concept; where nobody has said, by their scores.

        Then the scores are cut in two where the two parts differ most from each other: the cut that
        maximizes the variance between the parts (Otsu 1979).
        """
        return self._guessed if self.has is None else self.has

    @cached_property
    def _guessed(self) -> Bool[Tensor, " images"]:
        images = torch.cat([batch.images for batch, _ in self.rows()])
        scores = over_images(self.values, images, self.n_images)
        ordered = scores.sort().values
        below = torch.arange(1, len(ordered))
        left = ordered.cumsum(0)[:-1] / below
        right = (ordered.sum() - ordered.cumsum(0)[:-1]) / (len(ordered) - below)
        # The variance between the parts times the square of all images' number, which moves no cut.
        between = below * (len(ordered) - below) * (right - left).square()
        return scores > ordered[int(between.argmax())]

    def group_weights(self, keep: Bool[Tensor, " images"] | None = None) -> Float64[Tensor, " i"]:
        """Return a weight for each image, so that every group of class and concept counts alike.

        A concept that goes with a class covaries with whatever tells the class. In a population
        where each class has it half the time it does not, and what is left is the concept.

        Args:
            keep: images that count; the others have weight 0.
        """
        group = 2 * self.labels() + self.flags().long()
        counted = torch.ones_like(group, dtype=torch.bool) if keep is None else keep
        count = torch.bincount(group[counted], minlength=int(group.max()) + 1).double()
        # Images that do not count may be of a group without any that does, whose number is 0.
        weights: Tensor = torch.where(counted, 1 / count.clamp(min=1)[group], 0.0)
        return weights

    def labels(self) -> Int64[Tensor, " images"]:
        """Return the class of each image, over all recordings in order.

        Where images have several labels or targets, all count as of one class.
        """
        if any(acts.labelling != "class" for acts in self.recordings):
            return torch.zeros(self.n_images, dtype=torch.int64)
        if all(acts.n_rows == acts.n_images for acts in self.recordings):
            return torch.cat([acts.labels().long() for acts in self.recordings])
        # Several rows an image: which is whose is read together with the activations only.
        labels = torch.zeros(self.n_images, dtype=torch.int64)
        for batch, _ in self.rows():
            labels[batch.images] = batch.labels.long()
        return labels

    def moments(
        self, *, balanced: bool = False, keep: Bool[Tensor, " images"] | None = None
    ) -> JointMoments:
        """Return the moments of activations and values.

        Args:
            balanced: every group of class and concept counts alike, see `group_weights`.
            keep: images that count.
        """
        every = torch.ones(self.n_images, dtype=torch.float64)
        weights = self.group_weights(keep) if balanced else every if keep is None else keep.double()

        def parts() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for batch, values in self.rows():
                weight = weights[batch.images]
                # Moments take positive weights only.
                counted = weight > 0
                yield batch.x[counted], values[counted, None], weight[counted]

        return JointMoments.of(parts())

    def effects(
        self, keep: Bool[Tensor, " images"] | None = None
    ) -> Float64[Tensor, "width effects"]:
        r"""Return what the concept does to activations: columns e with the covariance $ee^T$.

        Half of the difference of each pair, or where there are no pairs, of the means with and
        without it in each class; scaled so that the sum over columns of $ee^T$ is the covariance
        that the concept adds to a class in which every second image has it.

        Args:
            keep: images that count.

        Raises:
            InputError: if there are no pairs and no class has images with and without it.
        """
        counted = torch.ones(self.n_images, dtype=torch.bool) if keep is None else keep
        if self.is_paired:
            return _effects_of_pairs(self.recordings, counted)
        return _effects_by_class(self, counted)

    def pair_moments(
        self, keep: Bool[Tensor, " images"] | None = None,
        centre: Centre = "mean",
    ) -> PairMoments:  # fmt: skip
        """Return the moments of the pairs of rows.

        Args:
            keep: images that count.
            centre: see `PairMoments.of`.

        Raises:
            InputError: if the images are no pairs.
        """
        if not self.is_paired:
            raise InputError(
                f"'{self.name}' was not found in pairs: record the same images with and without "
                "it, in the same order, and pass find_concept(with_acts, without=without_acts)"
            )
        counted = torch.ones(self.n_images, dtype=torch.bool) if keep is None else keep
        return PairMoments.of(_pairs(self.recordings, counted), centre)

    def class_moments(self) -> JointMoments:
        """Return the moments of activations and one-hot classes.

        Raises:
            InputError: if there is one class only.
        """
        n_classes = max(acts.n_classes for acts in self.recordings)
        if n_classes < 2:
            raise InputError(
                f"the recording of '{self.name}' has one class only, so that nothing tells classes "
                "apart; record with labels"
            )
        one_hot = torch.nn.functional.one_hot
        return JointMoments.of(
            (batch.x, one_hot(batch.labels.long(), n_classes).double()) for batch, _ in self.rows()
        )


def rows_of(
    recordings: Sequence[Activations], values: Float64[Tensor, " rows"]
) -> Iterator[tuple[Batch, Float64[Tensor, " rows"]]]:
    """Yield all rows of recordings with their values; images are numbered over all of them."""
    start, first_image = 0, 0
    for acts in recordings:
        for batch in acts.batches(ROWS):
            part = values[start : start + len(batch)]
            yield Batch(batch.x, batch.annotation, batch.images + first_image), part
            start += len(batch)
        first_image += acts.n_images


def _pairs(
    recordings: Sequence[Activations], counted: Tensor
) -> Iterator[tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]]:
    """Yield the rows with the concept and the same rows without it."""
    first, second = recordings
    for with_, without in zip(first.batches(ROWS), second.batches(ROWS), strict=True):
        mine = counted[with_.images] & counted[without.images + first.n_images]
        yield with_.x[mine], without.x[mine]


def _effects_of_pairs(
    recordings: Sequence[Activations], counted: Tensor
) -> Float64[Tensor, "width effects"]:
    width = recordings[0].width
    square, count = torch.zeros(width, width, dtype=torch.float64), 0
    for with_, without in _pairs(recordings, counted):
        # If every second image has it, images lie half a difference to either side of their mean:
        # the covariance is that of the halves, about zero and not about their own mean.
        change = (with_.double() - without.double()) / 2
        square += change.T @ change
        count += len(change)
    # A column for each pair would say the same; the axes of their covariance are no more columns
    # than there are features.
    spreads, axes = torch.linalg.eigh(square / max(1, count))
    effects: Tensor = axes * spreads.clamp(min=0).sqrt()
    return effects


def _effects_by_class(concept: Concept, counted: Tensor) -> Float64[Tensor, "width effects"]:
    flags, labels = concept.flags(), concept.labels()
    sums = torch.zeros(2, int(labels.max()) + 1, concept.site.width, dtype=torch.float64)
    counts = torch.zeros(sums.shape[:2], dtype=torch.float64)
    for batch, _ in concept.rows():
        for side, chosen in enumerate((counted & ~flags, counted & flags)):
            mine = chosen[batch.images]
            own = labels[batch.images[mine]]
            sums[side].index_add_(0, own, batch.x[mine].double())
            counts[side] += torch.bincount(own, minlength=sums.shape[1])
    seen = (counts > 0).all(0)
    if not bool(seen.any()):
        raise InputError(
            f"no class has images with and without '{concept.name}' among the {int(counted.sum())} "
            f"of {len(counted)} that count, so that nothing tells it from the class; add such "
            "images, or give finer groups where whole ones are held out"
        )
    means = sums[:, seen] / counts[:, seen, None]
    # Halves as for pairs; by the root of the number of classes, so that the sum over columns of eeᵀ
    # is the mean over classes.
    effects: Tensor = (means[1] - means[0]).T / 2 / int(seen.sum()) ** 0.5
    return effects
