"""A concept as a value: which rows of a recording have it, and how that is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from salve_plugin.control.concepts.evidence import ConceptEvidence
from salve_plugin.control.erasers import JointMoments
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations, Batch
from salve_plugin.errors import InputError
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
        return f"<Concept {self.note}, at '{self.site.name}'>"

    def rows(self) -> Iterator[tuple[Batch, Float64[Tensor, " rows"]]]:
        """Yield all rows with their values; images are numbered over all recordings."""
        return rows_of(self.recordings, self.values)

    def moments(self, *, within_classes: bool = False) -> JointMoments:
        """Return the moments of activations and values.

        Args:
            within_classes: only what varies within each class: a concept that goes with a class is
                then told from the class itself.
        """
        if within_classes:
            return JointMoments.of((b.x, values[:, None], b.labels) for b, values in self.rows())
        return JointMoments.of((batch.x, values[:, None]) for batch, values in self.rows())

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
            yield Batch(batch.x, batch.labels, batch.images + first_image), part
            start += len(batch)
        first_image += acts.n_images
