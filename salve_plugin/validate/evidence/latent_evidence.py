"""What is known of each latent, with what chance gives beside each number."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.validate.activity import Activity
from salve_plugin.validate.evidence.concept_sets import SetProfile
from salve_plugin.validate.evidence.dissection import SegmentProfile
from salve_plugin.validate.evidence.flip_shares import FlipShares
from salve_plugin.validate.evidence.intervention import SCALES
from salve_plugin.validate.evidence.map_falls import MapFalls
from salve_plugin.validate.evidence.permuting import SIGNIFICANT


@dataclass(frozen=True, eq=False, repr=False)
class LatentEvidence(Tabular):
    """All latents of a dictionary on one recording; NaN is what was not measured or is undefined.

    A latent's code in an image is the strongest over its rows, and "active" means above 0.01 of
    the root of the rows' mean squared distance from their mean; both in the direction of the
    latent's largest code in absolute value. A `null` is what chance reaches in 1 of 20 cases, a `p`
    the share of such cases that reach as much: never 0, and with a choice (of a class, of a
    partner) made anew in each.

    Attributes:
        activity: density, largest codes and top images.
        label: the class that the latent tells best; -1 for one that is alike in all images.
        auc: area under the ROC curve for that class.
        auc_null: the area that the best of all classes reaches with permuted labels.
        auc_p: permutations in which the best class is told as well, of this latent.
        auc_p_all: the same of the best of all latents: as many latents as there are is accounted
            for.
        precision: share of the top `k` images that are of the class.
        precision_null: that of the most frequent class among k random images.
        chance: share of all images that are of the class.
        partner: the other latent that is most often active in the same images; -1 for none.
        phi: correlation of being active in an image.
        phi_null: that of the most associated latent by chance.
        phi_p: of the overlap, exact, corrected for the choice among all latents.
        curve: mean probability of the class, on images of it, with the latent's contribution
            times `SCALES` (latents, 5).
        kl: mean KL(base || latent ablated) on these images, nats.
        effect: change of that probability when it is ablated.
        effect_p: share of other latents that lower it as much at the same KL.
        explained: see `PredictedEffect.explained`.
        explained_null: see there.
        dictionary_digest: of the dictionary.
        k: of the precision.
        n_images: of the recording.
        permutations: of the labels.
        classes: names by label; None if the data set has none.
        flips: how often it is among the fewest latents that a decision hangs on; None where the
            dictionary is not of what the classifier reads.
        groups: which group of classes it tells best, or which single class if that is told better;
            None where none were given.
        maps: whether each falls where its maps point; None where images were not given.
        segments: which segment its region covers; None where masks were not given.
        concepts: which set of examples it tells; None where none were given.
        notes: what was asked for and could not be measured, and why.
    """

    activity: Activity
    label: Int64[Tensor, " latents"]
    auc: Float64[Tensor, " latents"]
    auc_null: Float64[Tensor, " latents"]
    auc_p: Float64[Tensor, " latents"]
    auc_p_all: Float64[Tensor, " latents"]
    precision: Float64[Tensor, " latents"]
    precision_null: Float64[Tensor, " latents"]
    chance: Float64[Tensor, " latents"]
    partner: Int64[Tensor, " latents"]
    phi: Float64[Tensor, " latents"]
    phi_null: Float64[Tensor, " latents"]
    phi_p: Float64[Tensor, " latents"]
    curve: Float64[Tensor, "latents scales"]
    kl: Float64[Tensor, " latents"]
    effect: Float64[Tensor, " latents"]
    effect_p: Float64[Tensor, " latents"]
    explained: Float64[Tensor, " latents"]
    explained_null: Float64[Tensor, " latents"]
    dictionary_digest: str
    k: int
    n_images: int
    permutations: int
    classes: tuple[str, ...] | None
    flips: FlipShares | None = None
    groups: SetProfile | None = None
    maps: MapFalls | None = None
    segments: SegmentProfile | None = None
    concepts: SetProfile | None = None
    notes: tuple[str, ...] = ()

    @property
    def density(self) -> Float64[Tensor, " latents"]:
        """Share of the rows in which each latent is active."""
        return self.activity.density

    @property
    def largest(self) -> Float[Tensor, " latents"]:
        """The code of each latent that is largest in absolute value, with its sign."""
        return torch.where(self.activity.signs < 0, self.activity.least, self.activity.most)

    @property
    def top_images(self) -> Int64[Tensor, "latents top"]:
        """The images with the largest codes, best first."""
        return self.activity.top_images

    def __repr__(self) -> str:
        """Say in one line how many latents tell a class."""
        telling = int((self.auc_p_all <= SIGNIFICANT).sum())
        return (
            f"<LatentEvidence: {telling} of {len(self.label)} latents tell a class beyond chance, "
            f"{self.n_images} images, {self.permutations} permutations>"
        )

    def table(self, latents: list[int] | None = None) -> str:
        """Return the numbers of some latents, or of those that tell a class best, as text.

        Raises:
            InputError: if there is no such latent.
        """
        return self.as_table(latents).text()

    def as_table(self, latents: list[int] | None = None) -> Table:
        """Return the same as a table; each null stands in brackets."""
        known = len(self.label)
        if latents is None:
            # Constant latents, whose area is undefined, come last. By how far the area is beyond
            # chance, not by its size: of a small class, chance reaches more.
            order = (
                (self.auc - self.auc_null)
                .nan_to_num(nan=-1.0)
                .argsort(descending=True, stable=True)
            )
            latents = order.tolist()
        elif unknown := [latent for latent in latents if not 0 <= latent < known]:
            raise InputError(f"no latents {unknown}; there are {known}, from 0 to {known - 1}")
        return Table(
            f"{known} latents on {self.n_images} images",
            (
                "latent", "density", "largest", "class", "AUC", "p, all latents",
                f"precision of {self.k}", "partner", "phi", "ablated", "p, equal KL",
                "predicted effect", *(head for head, _ in self._further()),
            ),
            [self._row(latent) for latent in latents],
            (
                "in brackets: what chance reaches in 1 of 20 cases, the choice of the class or the "
                "partner included",
                f"ablated: change of the class's mean probability; at {list(SCALES)} times the "
                "contribution: .curve",
                *(["flips: share of images in which it is among the fewest latents whose removal "
                   "flips the decision"] if self.flips is not None else []),
                *(["blurred: share of the latent that goes with the fifth of its top images that "
                   "its map marks"] if self.maps is not None else []),
                *self.notes,
            ),
        )  # fmt: skip

    def _row(self, latent: int) -> tuple[object, ...]:
        label, partner = int(self.label[latent]), int(self.partner[latent])
        name = str(label) if self.classes is None or label < 0 else self.classes[label]
        return (
            latent, float(self.density[latent]), float(self.largest[latent]),
            None if label < 0 else name,
            _beside(self.auc[latent], self.auc_null[latent]), float(self.auc_p_all[latent]),
            _beside(self.precision[latent], self.precision_null[latent]),
            None if partner < 0 else str(partner),
            _beside(self.phi[latent], self.phi_null[latent]),
            float(self.effect[latent]), float(self.effect_p[latent]),
            _beside(self.explained[latent], self.explained_null[latent]),
            *(cell(latent) for _, cell in self._further()),
        )  # fmt: skip

    def _further(self) -> list[tuple[str, Callable[[int], str | None]]]:
        """Return what images, masks and concepts add to each latent's row, by column."""
        columns: list[tuple[str, Callable[[int], str | None]]] = []
        flips, maps, segments = self.flips, self.maps, self.segments
        if flips is not None:
            columns += [
                ("flips", lambda one: _beside(flips.share[one], flips.share_null[one])),
            ]
        if maps is not None:
            columns += [("blurred", lambda one: _beside(maps.fall[one], maps.fall_null[one]))]
        if segments is not None:
            columns += [
                ("segment", segments.name),
                ("IoU", lambda one: _beside(segments.iou[one], segments.iou_null[one])),
            ]
        for head, sets in (("group", self.groups), ("concept", self.concepts)):
            if sets is not None:
                columns += [(head, sets.name), (f"AUC of the {head}", partial(_area, sets))]
        return columns


def _area(sets: SetProfile, latent: int) -> str | None:
    return _beside(sets.auc[latent], sets.auc_null[latent])


def _beside(value: Tensor, null: Tensor) -> str | None:
    return None if value.isnan() else f"{float(value):.3f} ({float(null):.3f})"
