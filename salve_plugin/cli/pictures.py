"""The images of a study that show a latent most, and Grad-FAM pictures of them for an artifact."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.cli.study import OpenModel, Study
from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import AttributionError, InputError, ReadError
from salve_plugin.validate.heat_maps import grad_fam_pictures, recorded_values


def of_study(
    study: Study,
    opened: OpenModel,
    acts: Activations,
    dictionary: Dictionary,
    edit: Edit,
    label: int | None,
    count: int,
) -> tuple[dict[str, bytes], str | None]:
    """Return pictures of the images that show the edit's latent most, and why there are none.

    An edit is worth as much without pictures, so that images which are not there any more, or a
    model without a feature map, are no error.

    Args:
        study: whose images are taken.
        opened: its model.
        acts: its recording.
        dictionary: its dictionary.
        edit: of one of the dictionary's latents.
        label: only images of this class; None means all.
        count: how many at most.
    """
    if count == 0:
        return {}, None
    try:
        images, names, _ = strongest(study, opened, acts, dictionary, edit.latent, label, count)
        return grad_fam_pictures(opened.hooked, dictionary, edit, images, names=names), None
    except (ReadError, InputError, AttributionError) as error:
        return {}, f"no Grad-FAM pictures: {error}"


def strongest(
    study: Study,
    opened: OpenModel,
    acts: Activations,
    dictionary: Dictionary,
    latent: int,
    label: int | None,
    count: int,
) -> tuple[Float[Tensor, "images channels height width"], list[str], Literal[1, -1]]:
    """Return the images that show a latent most, what to call them, and which side that is.

    They are those whose latent is furthest on the side of its mean over the candidates, which are
    the images of a class, or all.

    Raises:
        ReadError: if an image is not there any more.
        InputError: if the images are not the recorded ones.
    """
    tree = opened.images(Path(study.data), left_out=study.left_out)
    labels = torch.tensor([image_label for _, image_label in tree.samples])
    order, sign = _ordered(acts, dictionary, latent, labels, label)
    paths = [Path(tree.samples[index][0]) for index in order[:count]]
    names = [f"{path.parent.name}: {path.name}" for path in paths]
    return torch.stack([tree[index][0] for index in order[:count]]), names, sign


def _ordered(
    acts: Activations,
    dictionary: Dictionary,
    latent: int,
    labels: Tensor,
    label: int | None,
) -> tuple[list[int], Literal[1, -1]]:
    """Return the images by how far their latent is on the side of their mean, and which that is.

    Raises:
        InputError: if the images are not the recorded ones.
    """
    recorded = acts.labels().long()
    # All images have as many rows, which follow one another: one label of each.
    if not torch.equal(recorded[:: acts.n_rows // acts.n_images], labels):
        raise InputError(
            "the study's images are not the ones that were recorded; put those back, or make a "
            "study of these: `salve discover` with another --out"
        )
    values = recorded_values(acts, dictionary, latent)
    candidates = torch.arange(len(labels)) if label is None else (labels == label).nonzero()[:, 0]
    sign: Literal[1, -1] = 1 if values[candidates].mean() >= 0 else -1
    order = (sign * values[candidates]).argsort(descending=True, stable=True)
    return candidates[order].tolist(), sign
