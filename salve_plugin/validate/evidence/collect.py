"""The evidence for all latents, block by block, from a recording that is read in pieces."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from salve_plugin.control.assessment.predictions import other_latents
from salve_plugin.control.operators.gate import Gate
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.faces.progress import bar
from salve_plugin.hooks import HookedModel
from salve_plugin.integers import seed_number, whole
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch
from salve_plugin.store.digest import content_digest
from salve_plugin.validate.activity import Activity, activity, activity_tolerance, codes_by_image
from salve_plugin.validate.evidence.class_groups import with_single_classes
from salve_plugin.validate.evidence.class_profile import NO_CLASS, class_profile
from salve_plugin.validate.evidence.concept_sets import SetProfile, check_concepts, concept_profile
from salve_plugin.validate.evidence.cooccurrence import partners
from salve_plugin.validate.evidence.dissection import check_segments, masks_on_grid
from salve_plugin.validate.evidence.flip_shares import FlipShares, flip_shares, images_to_try
from salve_plugin.validate.evidence.head import (
    ReadHead,
    check_parts,
    evenly,
    is_head_input,
    over_classes,
    read_head,
    rows_of,
)
from salve_plugin.validate.evidence.intervention import SCALES, intervention
from salve_plugin.validate.evidence.kept import Kept, concatenated
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence
from salve_plugin.validate.evidence.permuting import p_values, permuted_labels, upper
from salve_plugin.validate.evidence.predicted import gate_shares, products_of
from salve_plugin.validate.evidence.recorded_images import RecordedImages
from salve_plugin.validate.evidence.retrieval import precision_at, precision_by_chance
from salve_plugin.validate.evidence.shown import Shown

MOST_CODES = 2**24
"""Codes, one for each image and latent of a block, that are in memory at once."""
MOST_LATENTS = 1024
"""Of a block: its overlaps with all other latents are in memory too."""
IMAGES = 32
"""Images of a class on which its latents are intervened on; of all classes, predictions are
compared on so many times 8."""
_FORMAT = 1


@torch.no_grad()
@without_autocast()
def evidence(
    hooked: HookedModel,
    dictionary: Dictionary,
    acts: Activations,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    images: Any = None,
    masks: Sequence[Any] | None = None,
    segments: Sequence[str] | None = None,
    concepts: Mapping[str, Tensor] | None = None,
    top: int = 10,
    permutations: int = 200,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    on_base_mismatch: OnBaseMismatch = "error",
) -> LatentEvidence:
    """Measure what speaks for each latent, and what chance gives beside each number.

    Classes are those of the recording's labels. Interventions and predictions are measured where
    the dictionary is of what the classifier reads: exactly, without a forward pass, on recorded
    inputs. Elsewhere interventions run the network and need the images, and the rest is NaN.

    The recording is read in pieces, a few times and once more for each block of latents: memory
    grows with the number of images only in their labels, of which there is a copy for each
    permutation.

    Args:
        hooked: the recorded model.
        dictionary: of the recording's site.
        acts: images that the evidence is to be of; held-out ones, if it is to hold for new images.
        groups: of classes by name, such as `salve.class_tree(hooked).groups` or an ontology's. With
            them, the group is named that a latent tells best, or the class if none is better.
        images: data set that was recorded, such as the loader's `.dataset`: its item i is the i-th
            (image, label). With it, it is measured whether latents fall where their maps point;
            and at other sites than the classifier's input what interventions do, at about
            a thousand forward passes a latent.
        masks: for each image the number of the segment of every pixel (height, width), 0 for none,
            as the model sees the image. With them, latents' regions are compared with segments.
        segments: names of these, from number 1 on.
        concepts: sets of example images by name, (images, channels, height, width), one of them
            random images. With them, the set is named that a latent tells best.
        top: images that are named for each latent, of which the precision is taken.
        permutations: of the labels; no p is below 1 / (1 + permutations).
        seed: of the permutations and of the choice of other latents.
        folder: keeps each block of latents that is done: called again, it goes on from there.
        progress: whether to show a bar.
        on_base_mismatch: "warn" goes on with a dictionary or a model of another network than the
            recording's.

    Raises:
        InputError: if the dictionary reads another site, labels are not the classifier's, `top` or
            `permutations` is not positive, groups, images, masks or concepts cannot be used, or
            `folder` holds blocks of something else.
        BaseMismatchError: if dictionary, recording and model are not of one network.
        ReadError: if a shard, or a block in `folder`, is damaged.
        WriteError: if a block cannot be kept.
    """
    top, permutations = whole(top, "top", least=1), whole(permutations, "permutations", least=1)
    seed = seed_number(seed)
    if concepts is not None:
        check_concepts(concepts)
    if images is None and masks is not None:
        raise InputError("masks are compared with maps of the images: pass images= too")
    if masks is None and segments is not None:
        raise InputError("segments= names the segments of masks: pass masks= too")
    check_parts(hooked, dictionary, acts, on_base_mismatch)
    pictures = None if images is None else RecordedImages(hooked, acts, images)
    # What is wrong with the groups or masks is said before the blocks, which may take hours.
    sets = None if groups is None else with_single_classes(groups, acts)
    grid = None if masks is None else masks_on_grid(masks, acts.n_images)
    if grid is not None:
        check_segments(grid, segments)
    reading = _Reading(hooked, dictionary, acts, top, permutations, seed)
    # It is part of the digest of what is kept: with other constants, blocks would begin elsewhere.
    size = max(1, min(MOST_LATENTS, MOST_CODES // acts.n_images, dictionary.n_latents))
    kept = Kept(folder, reading.digest(size))
    with bar("evidence", dictionary.n_latents, progress) as update:
        blocks = kept.blocks(dictionary.n_latents, size, reading.block, update)
    # All blocks have the same orders of the labels: the largest over blocks is that of all latents
    # in one order.
    # They are taken out, for they are of permutations and not of latents, which are joined.
    best = torch.stack([block.pop("maxima") for block in blocks]).amax(0)
    joined: dict[str, Any] = concatenated(blocks)
    further: dict[str, Any] = {"flips": reading.flips(folder)}
    if sets is not None:
        names, members = sets
        digest = content_digest({"evidence": reading.digest(size)}, {"members": members})
        kept = Kept(folder, digest, "groups")
        told = kept.blocks(dictionary.n_latents, size, partial(reading.told, members))
        further["groups"] = SetProfile.of(names, told)
    if pictures is not None:
        shown = Shown(
            hooked, dictionary, pictures, reading.activity, folder, reading.digest(0), seed,
            progress=progress,
        )  # fmt: skip
        further["maps"] = shown.map_falls()
        further["segments"] = None if grid is None else shown.segments(grid, segments)
        further["notes"] = tuple(shown.notes)
        if not reading.reads_head:
            joined |= shown.effects(acts.image_labels().long(), joined["label"])
    if concepts is not None:
        further["concepts"] = concept_profile(
            hooked, dictionary, concepts, reading.activity.signs,
            tolerance=reading.tolerance, permutations=permutations, seed=seed,
        )  # fmt: skip
    return LatentEvidence(
        activity=reading.activity,
        auc_p_all=p_values(joined.pop("z").nan_to_num(nan=-torch.inf), best[:, None]),
        **joined, dictionary_digest=dictionary.digest, k=reading.k, n_images=acts.n_images,
        permutations=permutations, classes=acts.classes, **further,
    )  # fmt: skip


class _Reading:
    """One recording with what all blocks of latents share."""

    def __init__(
        self,
        hooked: HookedModel,
        dictionary: Dictionary,
        acts: Activations,
        top: int,
        permutations: int,
        seed: int,
    ) -> None:
        self._dictionary, self._acts, self._seed = dictionary, acts, seed
        self.activity: Activity = activity(dictionary, acts, top)
        self.k = min(top, acts.n_images)
        self.tolerance = activity_tolerance(acts)
        self._labels = acts.image_labels().long()
        self._permuted = permuted_labels(self._labels, permutations, seed)
        self._precisions = precision_by_chance(self._permuted, self.k)
        self._counts = torch.bincount(self._labels)
        self._head: ReadHead | None = None
        if is_head_input(hooked, acts):
            self._head = read_head(hooked, dictionary, acts)
            self._atoms = dictionary.atoms.detach().cpu()
            self._some = over_classes(self._labels, 8 * IMAGES)
            self._x = rows_of(acts, self._some)
            own = [(self._labels == label).nonzero()[:, 0] for label in range(len(self._counts))]
            self._of_class = [images[evenly(len(images), IMAGES)] for images in own]
            # Read once for all classes, in ascending order, as `rows_of` returns rows; among them
            # bisection finds each class's own.
            chosen = torch.cat(self._of_class).sort().values
            logits = self._head.logits(rows_of(acts, chosen))
            self._logits = [logits[torch.searchsorted(chosen, images)] for images in self._of_class]

    @property
    def reads_head(self) -> bool:
        """Whether the recording is all that the classifier reads: then no network has to run."""
        return self._head is not None

    @cached_property
    def _products(self) -> Tensor:
        """What `gate_shares` of every latent needs; nothing where all blocks are kept."""
        assert self._head is not None  # at the classifier alone
        return products_of(self._head, self._x.double())

    def digest(self, size: int) -> str:
        """Return the digest of all that a block depends on."""
        acts = self._acts
        parts = {
            "format": _FORMAT, "dictionary": self._dictionary.digest, "size": size,
            "seed": self._seed, "k": self.k, "permutations": len(self._permuted),
            "images": acts.images_sha256, "labels": acts.labels_sha256, "n_rows": acts.n_rows,
            "model": acts.model_sha256,
        }  # fmt: skip
        # The extremes of all codes tell recordings of the same images apart, such as one in half
        # precision. At the classifier, also the inputs that effects are measured on and what reads
        # them now, which the recording does not know.
        tensors = {"least": self.activity.least, "most": self.activity.most}
        if self._head is not None:
            tensors |= {"weight": self._head.weight, "bias": self._head.bias, "x": self._x}
        return content_digest(parts, tensors)

    def flips(self, folder: str | os.PathLike[str] | None) -> FlipShares | None:
        """Return how often latents are among the fewest that flip a decision, at the classifier."""
        head = self._head
        if head is None:
            return None
        labels = self._labels[self._some]
        x = self._x[over_classes(labels, images_to_try(head, len(labels)))]
        kept = Kept(folder, content_digest({"of": self.digest(0), "images": len(x)}, {}), "flips")
        tensors = kept.read(0)
        if tensors is None:
            codes = self._dictionary.encode(x.to(self._dictionary.atoms.device)).cpu().double()
            tensors = flip_shares(head, x, codes)
            kept.write(0, tensors)
        return FlipShares(**tensors, n_images=len(x))

    def told(self, groups: Bool[Tensor, "groups classes"], own: Tensor) -> dict[str, Tensor]:
        """Return the `ClassProfile` of some latents for groups of classes, by field."""
        codes, _, _ = self._read(own)
        return vars(class_profile(codes, self._labels, self._permuted, groups))

    def block(self, own: Tensor) -> dict[str, Tensor]:
        """Return the numbers of some latents, by name of the field."""
        codes, joint, counts = self._read(own)
        profile = class_profile(codes, self._labels, self._permuted)
        told = profile.label != NO_CLASS
        relevant = self._labels[:, None] == profile.label
        precision = precision_at(codes, relevant, self.k)
        chance = self._counts[profile.label.clamp(min=0)].double() / len(self._labels)
        partner = partners(joint, counts, own, len(self._labels))
        nan = torch.full_like(precision, torch.nan)
        return {
            **vars(profile), **vars(partner),
            "precision": torch.where(told, precision, nan),
            "precision_null": torch.where(told, upper(self._precisions), nan),
            "chance": torch.where(told, chance, nan),
            **self._effects(own, codes * self.activity.signs[own], profile.label),
        }  # fmt: skip

    def _read(self, own: Tensor) -> tuple[Float[Tensor, "images own"], Tensor, Tensor]:
        """Return codes in the latents' direction, overlaps with all latents, and their counts."""
        signs = self.activity.signs
        codes = torch.empty(self._acts.n_images, len(own), dtype=torch.float32)
        joint = torch.zeros(len(own), len(signs), dtype=torch.float32)
        counts = torch.zeros(len(signs), dtype=torch.float64)
        for images, signed in codes_by_image(self._dictionary, self._acts, signs):
            directed = signed * signs
            active = (directed > self.tolerance).float()
            # What is off is equally off: else rounding, which may depend on the class, is ranked.
            own_codes = directed[:, own]
            codes[images] = own_codes * (own_codes.abs() > self.tolerance)
            # Exact: float32 has every whole number up to 16 million images.
            joint += active[:, own].T @ active
            counts += active.sum(0)
        return codes, joint, counts

    def _effects(self, own: Tensor, codes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what interventions do and predictions are worth; NaN away from the classifier."""
        effects = {
            name: torch.full((len(own),), torch.nan, dtype=torch.float64)
            for name in ("kl", "effect", "effect_p", "explained", "explained_null")
        }
        effects["curve"] = torch.full((len(own), len(SCALES)), torch.nan, dtype=torch.float64)
        head = self._head
        if head is None:
            return effects
        x = self._x.double()
        some_codes = self._dictionary.encode(self._x.to(self._dictionary.atoms.device))
        some_codes = some_codes.cpu().double()
        for row, (latent, label) in enumerate(zip(own.tolist(), labels.tolist(), strict=True)):
            drawn = other_latents([latent], [latent], len(head.pull), self._seed)
            others = [other for (other,) in drawn]
            # At strength 1; up to where a factor reaches 0, the share does not depend on it.
            tried = [latent, *others]
            shares = gate_shares(
                head, x, self._products, Gate(self._atoms[latent, None], 1.0),
                some_codes[:, tried], head.pull[tried],
            )  # fmt: skip
            effects["explained"][row] = shares[0]
            if others:
                effects["explained_null"][row] = upper(shares[1:, None])[0]
            if label == NO_CLASS:
                continue
            measured = intervention(
                self._logits[label], codes[self._of_class[label], row].double(),
                head.pull[latent], head.pull[others], label,
            )  # fmt: skip
            effects["curve"][row] = torch.tensor(measured.curve, dtype=torch.float64)
            for name in ("kl", "effect", "effect_p"):
                effects[name][row] = getattr(measured, name)
        return effects
