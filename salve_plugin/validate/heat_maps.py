"""Pictures for an artifact's card: where in an image the edit's latent comes from."""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch
from salve_plugin.validate.pictures import overlay, png_bytes, stretched

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_SIDE, GAP = 160, 4


def grad_fam_pictures(
    hooked: HookedModel,
    dictionary: Dictionary,
    edit: Edit,
    images: Float[Tensor, "images channels height width"],
    *,
    on_base_mismatch: OnBaseMismatch = "error",
) -> dict[str, bytes]:
    """Return for each image a PNG with the image itself and beside it what the edit is about.

    The second half is the Grad-FAM map of the edit's latent over the image: red where the image
    raises the latent, blue where it lowers it. The pictures travel with the artifact, so choose
    images that may.

    Args:
        hooked: the attached model.
        dictionary: the one that the edit's direction is from.
        edit: whose latent is shown.
        images: a few, (images, channels, height, width) as the model takes them.
        on_base_mismatch: as for `LayerGradFam.of`.

    Returns:
        By name: "grad-fam-1", "grad-fam-2", ...; for `EditArtifact.of(..., pictures=...)`.

    Raises:
        InputError: if the edit is not about one latent, or the dictionary is not the one that the
            latent is from.
        BaseMismatchError: if it was learned from another network than the model.
        AttributionError: if the model has no map or patch grid to look at.
    """
    from salve_plugin.validate.grad_fam import LayerGradFam  # imports captum

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
    fam = LayerGradFam.of(hooked, dictionary, on_base_mismatch=on_base_mismatch)
    maps = fam.attribute(images, target=latent)
    return {
        f"grad-fam-{number}": png_bytes(_beside(image, heat), colours=256)
        for number, (image, heat) in enumerate(zip(images, maps, strict=True), start=1)
    }


def _beside(image: Tensor, heat: Tensor) -> "Image":
    from PIL import Image

    height, width = image.shape[-2:]
    factor = -(-LEAST_SIDE // min(height, width))  # small images could not be seen
    size = (factor * height, factor * width)
    halves = [stretched(image).resize(size[::-1]), overlay(image, heat, size=size, signed=True)]
    canvas = Image.new("RGB", (2 * size[1] + GAP, size[0]), "white")
    for number, half in enumerate(halves):
        canvas.paste(half, (number * (size[1] + GAP), 0))
    return canvas
