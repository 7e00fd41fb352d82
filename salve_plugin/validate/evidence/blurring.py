"""Does a latent fall where its map points? What is marked is blurred, and regions elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from salve_plugin.control.operators.base import real
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel
from salve_plugin.images import run
from salve_plugin.integers import seed_number, whole
from salve_plugin.kinds import of_kind
from salve_plugin.modes import evaluating, without_autocast
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import Site
from salve_plugin.taps import reading
from salve_plugin.validate.evidence.permuting import p_values
from salve_plugin.validate.latents import Stage, check_encodes, image_latents, latent_index
from salve_plugin.validate.layout import site_axis
from salve_plugin.validate.reconstruction import check_finite

AREA = 0.2
"""Share of the image that is blurred."""
_BATCH = 64
_WIDTH = 8
"""The blur's standard deviation is this part of the image's shorter side."""


@dataclass(frozen=True, eq=False, repr=False)
class MapCheck(Tabular):
    """How far latents fall when what their maps mark is blurred.

    Attributes:
        latents: of each image (images,).
        before: the latent in the image as it is.
        fall: by how much it is less with the marked region blurred; negative where it grew.
        falls_elsewhere: the same for the region moved to random places (images, regions).
        area: share of the image that is blurred.
    """

    latents: Int64[Tensor, " images"]
    before: Float64[Tensor, " images"]
    fall: Float64[Tensor, " images"]
    falls_elsewhere: Float64[Tensor, "images regions"]
    area: float

    @property
    def p(self) -> float:
        """Share of draws of one random place an image whose mean fall is as large.

        Images count in units of their mean absolute fall over all regions, so that one image with
        large codes does not decide.
        """
        falls = torch.cat([self.fall[:, None], self.falls_elsewhere], 1)
        scale = falls.abs().mean(1, keepdim=True).clamp(min=torch.finfo(falls.dtype).tiny)
        means = (falls / scale).mean(0)
        return float(p_values(means[:1], means[1:, None])[0])

    def __repr__(self) -> str:
        """Say in one line how far the latents fall, and elsewhere."""
        return (
            f"<MapCheck of {len(self.fall)} images: fall {float(self.fall.mean()):.4g} where the "
            f"map points, {float(self.falls_elsewhere.mean()):.4g} elsewhere, p {self.p:.3g}>"
        )

    def as_table(self) -> Table:
        """Return one row for each image."""
        falls = zip(
            self.latents.tolist(), self.before.tolist(), self.fall.tolist(),
            self.falls_elsewhere.mean(1).tolist(), strict=True,
        )  # fmt: skip
        return Table(
            f"The {self.area:.0%} of the image that the map marks, blurred",
            ("image", "latent", "before", "fall", "fall elsewhere"),
            [(image, *row) for image, row in enumerate(falls)],
            (f"of all images: p {self.p:.3g} over {self.falls_elsewhere.shape[1]} places",),
        )


@torch.no_grad()
@without_autocast()
def map_check(
    hooked: HookedModel,
    dictionary: Dictionary,
    images: Float[Tensor, "images channels height width"],
    target: int | Tensor | Sequence[int],
    *,
    heat: Tensor | None = None,
    area: float = AREA,
    regions: int = 19,
    stage: Stage = "pre",
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> MapCheck:
    """Blur the region that a map marks, and equally large regions elsewhere, and read the latent.

    The region is the share `area` of the pixels with the largest values of the map, enlarged to the
    image. Elsewhere is the same region moved around the image by random steps (over an edge, it
    comes in at the other), so that size and shape are equal and only the place differs. The blur is
    Gaussian, with an eighth of the shorter side as standard deviation.

    Args:
        hooked: the attached model.
        dictionary: of one of its sites.
        images: as the model takes them; the latent's top images as a rule.
        target: the latent, or one for each image.
        heat: maps to check, (images, 1, h, w), from any method; None for those of
            `LayerGradFam.of`.
        area: of the region, above 0 and below 1.
        regions: random places for each image.
        stage: "pre" reads the pre-activation latent, "post" the code.
        seed: of the places.
        on_base_mismatch: "warn" takes a dictionary of another network too.

    Raises:
        InputError: if an argument is out of range, there is no image, or the maps are not one for
            each image or not finite.
        SalveError: as `LayerGradFam.of` and its `attribute`.
    """
    regions, seed = whole(regions, "regions", least=1), seed_number(seed)
    if not 0 < real(area, "area") < 1:
        raise InputError(f"area {area}: expected a share of the image between 0 and 1")
    check_encodes(dictionary, stage)  # given maps, nothing else looks at the stage
    shape = "a tensor (images, channels, height, width)"
    if of_kind(images, Tensor, "images", shape).ndim != 4:
        raise InputError(f"images have shape {tuple(images.shape)}; expected {shape}")
    from salve_plugin.validate.grad_fam import LayerGradFam  # imports captum

    if heat is None:
        fam = LayerGradFam.of(
            hooked, dictionary, stage=stage, on_base_mismatch=on_base_mismatch
        )  # also compares networks
        heat = fam.attribute(images, target=target)
    of_kind(heat, Tensor, "heat", "maps (images, 1, h, w), as LayerGradFam gives them")
    if heat.ndim != 4 or len(heat) != len(images) or heat.shape[1] != 1 or not len(images):
        raise InputError(
            f"maps of shape {tuple(heat.shape)} for {len(images)} images; expected (images, 1, h, "
            "w), as LayerGradFam gives them, of at least one image"
        )
    check_finite(heat, "maps")  # of NaN, the largest values would be anywhere
    index = latent_index(target, len(images), dictionary.n_latents)
    site = hooked.site(dictionary.site.name)
    # Blurred and put together in float32; the model gets the images' own type.
    pixels = images.float()
    mask = marked(heat.float().cpu(), (images.shape[2], images.shape[3]), area)
    smooth = blurred(pixels)

    def read(batch: Tensor) -> Float64[Tensor, " images"]:
        return _latents(hooked, site, dictionary, batch.to(images.dtype), index, stage)

    before = read(pixels)
    random = torch.Generator().manual_seed(seed)
    falls = []
    for region in range(1 + regions):
        place = mask if region == 0 else _moved(mask, random)
        where = place.to(pixels.device)
        falls.append(before - read(torch.where(where, smooth, pixels)))
    return MapCheck(index, before, falls[0], torch.stack(falls[1:], 1), area)


def marked(
    heat: Float[Tensor, "images 1 h w"], size: tuple[int, int], area: float
) -> Bool[Tensor, "images 1 height width"]:
    """Return which pixels are among the share `area` with the largest values of a map."""
    shown = functional.interpolate(heat, size, mode="bilinear", align_corners=False).flatten(1)
    count = max(1, round(area * shown.shape[1]))
    mask = torch.zeros_like(shown, dtype=torch.bool)
    mask.scatter_(1, shown.topk(count, dim=1).indices, value=True)
    return mask.view(len(heat), 1, *size)


def blurred(
    images: Float[Tensor, "images channels height width"],
) -> Float[Tensor, "images channels height width"]:
    """Return the images with a Gaussian blur, whose weights at the edges add up to 1 too."""
    sigma = max(1.0, min(images.shape[2:]) / _WIDTH)
    # The kernel is a product of one for each axis: one after the other, a pixel costs n terms and
    # not n².
    for axis in (2, 3):
        places = torch.arange(images.shape[axis], dtype=images.dtype, device=images.device)
        weight = (-0.5 * ((places[:, None] - places) / sigma).square()).exp()
        weight = weight / weight.sum(1, keepdim=True)
        images = torch.tensordot(images, weight, dims=([axis], [1])).movedim(-1, axis)
    return images


def _moved(mask: Tensor, random: torch.Generator) -> Tensor:
    """Return each image's region at a random place."""
    height, width = mask.shape[2:]
    # Of one type, whatever torch's default is: a seed stands for the same places everywhere.
    steps = torch.rand(len(mask), 2, generator=random, dtype=torch.float32)
    steps = steps * torch.tensor([height, width])
    each = zip(mask, steps.long().tolist(), strict=True)
    return torch.stack([one.roll((down, right), (1, 2)) for one, (down, right) in each])


def _latents(
    hooked: HookedModel,
    site: Site,
    dictionary: Dictionary,
    images: Tensor,
    index: Int64[Tensor, " images"],
    stage: Stage,
) -> Float64[Tensor, " images"]:
    values = []
    with evaluating(hooked.model):
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            with reading(hooked.model, [site]) as activations:
                run(hooked.model, batch, "images")
            activation = activations[site.name].to(dictionary.atoms.device)
            axis = site_axis(tuple(activation.shape), site)
            latents = image_latents(dictionary, activation, axis, stage).cpu().double()
            values.append(latents.gather(1, index[start : start + _BATCH, None])[:, 0])
    return torch.cat(values)
