"""Images beside where in them a latent comes from, and beside what drives it most."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, evaluating, reading
from salve_plugin.images import run
from salve_plugin.network import OnBaseMismatch
from salve_plugin.validate.latents import LatentTarget, image_latents, latent_index
from salve_plugin.validate.pictures import Scale, to_picture
from salve_plugin.validate.sheets import Tile, beside, sheet

if TYPE_CHECKING:
    from salve_plugin.validate.maximization import Maximization

_ROWS = 4096
UNIT = "Grad-FAM: raises the latent (+), lowers it (−)"


@dataclass(frozen=True, eq=False)
class Explained:
    """Images, each with one latent's value and Grad-FAM map.

    Attributes:
        images: as the model takes them.
        maps: the signed Grad-FAM maps, (images, 1, h, w).
        latents: which latent of each image, (images,).
        values: its pre-activation, the mean over the positions of the dictionary's site.
    """

    images: Float[Tensor, "images channels height width"]
    maps: Float[Tensor, "images 1 h w"]
    latents: Tensor
    values: Float[Tensor, " images"]

    @classmethod
    def of(
        cls,
        hooked: HookedModel,
        dictionary: Dictionary,
        images: Float[Tensor, "images channels height width"],
        target: LatentTarget,
        *,
        on_base_mismatch: OnBaseMismatch = "error",
    ) -> "Explained":
        """Return the images explained; target is one latent, or one for each image.

        Raises:
            InputError: if a latent does not exist.
            BaseMismatchError: if the dictionary was learned from another network than the model.
            AttributionError: if the model has no map or patch grid to look at.
        """
        (explained,) = cls.each(
            hooked, dictionary, [images], target, on_base_mismatch=on_base_mismatch
        )
        return explained

    @classmethod
    def each(
        cls,
        hooked: HookedModel,
        dictionary: Dictionary,
        batches: Iterable[Float[Tensor, "images channels height width"]],
        target: LatentTarget,
        *,
        on_base_mismatch: OnBaseMismatch = "error",
    ) -> Iterator["Explained"]:
        """Yield batches explained, each as `of` does; the network is compared once.

        That takes a pass of SHA-256 over all weights.

        Raises:
            SalveError: as `of`.
        """
        from salve_plugin.validate.grad_fam import LayerGradFam  # imports captum

        fam = LayerGradFam.of(hooked, dictionary, on_base_mismatch=on_base_mismatch)
        site = hooked.site(dictionary.site.name)
        for images in batches:
            maps = fam.attribute(images, target=target)
            with torch.no_grad(), evaluating(hooked.model), reading(hooked.model, [site]) as seen:
                # A pass of its own: an attribution hands out the map alone, not the value.
                run(hooked.model, images, "images of this size")
                latents = image_latents(dictionary, seen[site.name], site.channel_axis, "pre")
            index = latent_index(target, len(images), latents.shape[1])
            values = latents.cpu().gather(1, index[:, None])[:, 0]
            yield cls(images, maps.detach().cpu(), index, values)

    @property
    def scale(self) -> Scale:
        """One scale for all maps; of both signs even if no value is negative, as for any latent."""
        return Scale.of(self.maps, signed=True)

    def tiles(self, names: Sequence[str], scale: Scale) -> list[list[Tile]]:
        """Return for each image itself, under its name, and its map under the latent's value."""
        return [
            beside(image, heat, scale, (name, f"latent {latent}, z = {value:.3g}"))
            for image, heat, name, latent, value in zip(
                self.images, self.maps, names, self.latents.tolist(), self.values, strict=True
            )
        ]

    def sheet(self, names: Sequence[str], *, columns: int, scale: Scale | None = None) -> bytes:
        """Return a PNG with each image beside its map; the scale is by default that of these."""
        scale = scale or self.scale
        tiles = [tile for pair in self.tiles(names, scale) for tile in pair]
        return sheet(tiles, columns=columns, scale=scale, unit=UNIT)

    def latent_sheet(
        self, names: Sequence[str], maximization: "Maximization", *, scale: Scale | None = None
    ) -> bytes:
        """Return a PNG with what was made to drive a latent beside these images, maps below them.

        All images must be of the one latent of the maximization.
        """
        scale = scale or self.scale
        above, below = zip(*self.tiles(names, scale), strict=True)
        tiles = [maximization_tile(maximization), *above, None, *below]
        return sheet(tiles, columns=len(above) + 1, scale=scale, unit=UNIT)


def maximization_tile(maximization: "Maximization") -> Tile:
    """Return the image that was made, and what it reaches beside what random images do."""
    made = "made to raise" if maximization.sign > 0 else "made to lower"
    return Tile(
        to_picture(maximization.image),
        f"{made} latent {maximization.latent}: z = {maximization.activation:.3g} (random images "
        f"{float(maximization.noise.mean()):.2g})",
    )


@torch.no_grad()
def recorded_values(
    acts: Activations, dictionary: Dictionary, latent: int
) -> Float64[Tensor, " images"]:
    """Return a latent's pre-activation for each recorded image, the mean over its positions."""
    device = dictionary.atoms.device
    values = [
        dictionary.pre_activation(batch.x.to(device))[:, latent].cpu().double()
        for batch in acts.batches(_ROWS)
    ]
    # The rows of an image follow one another, as many for each image.
    return torch.cat(values).reshape(acts.n_images, -1).mean(1)


def grad_fam_pictures(
    hooked: HookedModel,
    dictionary: Dictionary,
    edit: Edit,
    images: Float[Tensor, "images channels height width"],
    *,
    names: Sequence[str] | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> dict[str, bytes]:
    """Return for each image a PNG with the image itself and beside it what the edit is about.

    The second half is the Grad-FAM map of the edit's latent over the image: yellow where the image
    raises the latent, blue where it lowers it, in one scale for all images, symmetric around zero
    and drawn at the side. The pictures travel with the artifact, so choose images that may.

    Args:
        hooked: the attached model.
        dictionary: the one that the edit's direction is from.
        edit: whose latent is shown.
        images: a few, (images, channels, height, width) as the model takes them.
        names: what is written under each image, such as its class; by default its number.
        on_base_mismatch: as for `LayerGradFam.of`.

    Returns:
        By name: "grad-fam-1", "grad-fam-2", ...; for `EditArtifact.of(..., pictures=...)`.

    Raises:
        InputError: if the edit is not about one latent, or the dictionary is not the one that the
            latent is from, or there are not as many names as images.
        BaseMismatchError: if it was learned from another network than the model.
        AttributionError: if the model has no map or patch grid to look at.
    """
    latent = edit.latent  # refuses an edit of none or of several before anything is run
    if edit.dictionary_digest is None:
        raise InputError(
            f"edit {edit.digest[:12]} does not say which dictionary its latent is one of, so there "
            "is no map to draw; make it with salve.suppress, salve.enhance or salve.choose"
        )
    if dictionary.digest != edit.dictionary_digest:
        raise InputError(
            f"the edit's latent is one of the dictionary {edit.dictionary_digest[:12]}, this is "
            f"{dictionary.digest[:12]}; pass the one that the edit was made with"
        )
    if names is None:
        names = [f"image {number}" for number in range(1, len(images) + 1)]
    if len(names) != len(images):
        raise InputError(f"{len(names)} names for {len(images)} images; pass one an image")
    # All at once, for the one scale that the pictures share.
    explained = Explained.of(hooked, dictionary, images, latent, on_base_mismatch=on_base_mismatch)
    scale = explained.scale
    return {
        f"grad-fam-{number}": sheet(pair, columns=2, scale=scale, unit=UNIT, colours=256)
        for number, pair in enumerate(explained.tiles(names, scale), start=1)
    }
