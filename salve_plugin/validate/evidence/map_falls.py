"""For every latent: does it fall where its maps point, in the images that show it most?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.faces.one_line import one_line
from salve_plugin.faces.progress import Update
from salve_plugin.hooks import HookedModel
from salve_plugin.validate.activity import Activity
from salve_plugin.validate.evidence.blurring import map_check
from salve_plugin.validate.evidence.kept import Kept, concatenated
from salve_plugin.validate.evidence.permuting import p_values, upper
from salve_plugin.validate.evidence.recorded_images import BATCH, RecordedImages

MAPPED = 4
"""Images of each latent, its top ones."""
REGIONS = 19
"""Random places of the blurred region: the marked one is one of 20."""


@dataclass(frozen=True, eq=False)
class MapFalls:
    """By how much latents fall when the fifth of an image that their Grad-FAM map marks is blurred.

    Attributes:
        fall: share of the latent that goes, over its top images; 1 is all of it, negative where
            it grew, NaN for a latent that is off everywhere.
        fall_null: the same of the region at random places, what it stays at or below in 95 %.
        fall_p: share of places, the marked one counted, where it falls as much.
    """

    __repr__ = one_line

    fall: Float64[Tensor, " latents"]
    fall_null: Float64[Tensor, " latents"]
    fall_p: Float64[Tensor, " latents"]


def map_falls(
    hooked: HookedModel,
    dictionary: Dictionary,
    images: RecordedImages,
    activity: Activity,
    kept: Kept,
    *,
    seed: int,
    update: Update,
) -> MapFalls:
    """Blur what the maps of every latent mark in its top images; see `map_check`.

    Raises:
        AttributionError: if the model has no map to look at.
    """
    from salve_plugin.validate.grad_fam import LayerGradFam  # imports captum

    fam = LayerGradFam.of(hooked, dictionary, on_base_mismatch="warn")  # it was compared before
    top = activity.top_images[:, :MAPPED]

    def measured(own: Int64[Tensor, " some"]) -> dict[str, Tensor]:
        pairs = own.repeat_interleave(top.shape[1])
        batch = images.read(top[own].flatten().tolist())
        # Where a latent is strongest below zero, it is what lowers it that is marked.
        signs = activity.signs[pairs].view(-1, 1, 1, 1)
        heat = signs * fam.attribute(batch, target=pairs).float().cpu()
        # The code is read: it is what top images are told by, and nothing is below "off".
        check = map_check(
            hooked, dictionary, batch, pairs, heat=heat, regions=REGIONS, stage="post",
            # Other places for each block, and the same again where a block is computed again.
            seed=seed + int(own[0]),
        )  # fmt: skip
        falls = torch.cat([check.fall[:, None], check.falls_elsewhere], 1)
        shares = _shares(check.before, falls, len(own))
        # Of a latent that is off everywhere nothing can fall: its p is 1.
        return {
            "fall": shares[0], "fall_null": upper(shares[1:]),
            "fall_p": p_values(shares[0].nan_to_num(-torch.inf), shares[1:].nan_to_num(0.0)),
        }  # fmt: skip

    size = max(1, BATCH // top.shape[1])
    return MapFalls(**concatenated(kept.blocks(len(top), size, measured, update)))


def _shares(
    before: Float64[Tensor, " pairs"], falls: Float64[Tensor, "pairs regions"], n_latents: int
) -> Float64[Tensor, "regions latents"]:
    """Return the summed fall over a latent's images by the sum of what it was; NaN of nothing."""
    whole = before.view(n_latents, -1).sum(1)
    fallen = falls.view(n_latents, -1, falls.shape[1]).sum(1)
    # Of a latent that is negative where it is strongest, both signs turn, and the share stays.
    return torch.where(whole != 0, fallen.T / whole, torch.nan)
