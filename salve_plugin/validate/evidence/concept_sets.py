"""Which of the user's own sets of example images each latent tells best from the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel, evaluating, reading
from salve_plugin.images import run
from salve_plugin.kinds import of_kind
from salve_plugin.validate.evidence.class_profile import NO_CLASS, class_profile
from salve_plugin.validate.evidence.permuting import p_values, permuted_labels
from salve_plugin.validate.evidence.recorded_images import BATCH


@dataclass(frozen=True, eq=False)
class SetProfile:
    """The named set that each latent tells best, of example images or of a recording's classes.

    Attributes:
        names: of the sets.
        best: index of the name; -1 for a latent that is alike in all images.
        auc: area under the ROC curve, this set against all others.
        auc_null: the area that the best of all sets reaches with the images dealt out anew.
        auc_p: permutations in which the best set is told as well.
        auc_p_all: the same of the best of all latents.
    """

    __repr__ = one_line

    names: tuple[str, ...]
    best: Int64[Tensor, " latents"]
    auc: Float64[Tensor, " latents"]
    auc_null: Float64[Tensor, " latents"]
    auc_p: Float64[Tensor, " latents"]
    auc_p_all: Float64[Tensor, " latents"]

    @classmethod
    def of(cls, names: tuple[str, ...], parts: Sequence[Mapping[str, Tensor]]) -> "SetProfile":
        """Return what the fields of a `ClassProfile` say, of all latents or block by block."""
        best = torch.stack([part["maxima"] for part in parts]).amax(0)
        z, label, auc, null, p = (
            torch.cat([part[name] for part in parts])
            for name in ("z", "label", "auc", "auc_null", "auc_p")
        )
        p_all = p_values(z.nan_to_num(nan=-torch.inf), best[:, None])
        return cls(names, label, auc, null, p, p_all)

    def name(self, latent: int) -> str | None:
        """Return the name of a latent's set."""
        best = int(self.best[latent])
        return None if best == NO_CLASS else self.names[best]


def check_concepts(concepts: Mapping[str, Tensor]) -> None:
    """Refuse sets that nothing can be told from.

    Raises:
        InputError: if there are fewer than two, or one has fewer than two images.
    """
    of_kind(concepts, Mapping, "concepts", "images by the name of a concept")
    counts = {name: len(images) for name, images in concepts.items()}
    if len(counts) < 2 or min(counts.values()) < 2:
        raise InputError(
            f"concepts have {counts} images: expected at least two sets of at least two, one of "
            "them random images from the same source, which the others are told from"
        )


@torch.no_grad()
def concept_profile(
    hooked: HookedModel,
    dictionary: Dictionary,
    concepts: Mapping[str, Tensor],
    signs: Float[Tensor, " latents"],
    *,
    tolerance: float,
    permutations: int,
    seed: int,
) -> SetProfile:
    """Return the set that each latent tells best.

    Of several rows of an image the strongest code counts, in the latent's direction, and a code
    that is not active is zero, as on the recording. Sets are told from each other and not from the
    recording, whose images differ from all of them in where they come from.

    Args:
        hooked: the attached model.
        dictionary: of it.
        concepts: images (images, channels, height, width) as the model takes them, by name.
        signs: 1 or -1, the direction of each latent.
        tolerance: what an active code exceeds.
        permutations: of the images over the sets.
        seed: of the permutations.

    Raises:
        InputError: if the model does not take the images.
    """
    # The sets stand for classes, and the statistics are those of a recording's classes.
    sets = list(concepts.values())
    labels = torch.arange(len(sets)).repeat_interleave(torch.tensor([len(one) for one in sets]))
    codes = torch.cat([_codes(hooked, dictionary, images, signs, tolerance) for images in sets])
    profile = class_profile(codes, labels, permuted_labels(labels, permutations, seed))
    return SetProfile.of(tuple(concepts), [vars(profile)])


def _codes(
    hooked: HookedModel, dictionary: Dictionary, images: Tensor, signs: Tensor, tolerance: float
) -> Float[Tensor, "images latents"]:
    """Return the strongest code of each image and latent, in the latent's direction."""
    site, parts = hooked.site(dictionary.site.name), []
    for batch in images.split(BATCH):  # type: ignore[no-untyped-call] # torch leaves it untyped
        with evaluating(hooked.model), reading(hooked.model, [site]) as activations:
            run(hooked.model, batch, "a concept's images")
        rows = site.recorded_rows(activations[site.name]).to(dictionary.atoms)
        codes = dictionary.encode(rows).float().cpu() * signs
        # Rows come image by image, as many of each.
        codes = codes.view(len(batch), -1, codes.shape[1]).amax(1)
        parts.append(codes * (codes.abs() > tolerance))
    return torch.cat(parts)
