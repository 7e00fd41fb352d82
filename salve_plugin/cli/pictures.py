"""Grad-FAM pictures of a study's own images, for the artifact of an edit."""

from pathlib import Path

import torch

from salve_plugin.cli.study import OpenModel, Study
from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import AttributionError, InputError, ReadError
from salve_plugin.validate.heat_maps import grad_fam_pictures

_BATCH = 4096


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
        tree = opened.images(Path(study.data), left_out=study.left_out)
        labels = torch.tensor([image_label for _, image_label in tree.samples])
        chosen = _strongest(acts, dictionary, edit, labels, label)[:count]
        images = torch.stack([tree[index][0] for index in chosen])
        return grad_fam_pictures(opened.hooked, dictionary, edit, images), None
    except (ReadError, InputError, AttributionError) as error:
        return {}, f"no Grad-FAM pictures: {error}"


def _strongest(
    acts: Activations,
    dictionary: Dictionary,
    edit: Edit,
    labels: torch.Tensor,
    label: int | None,
) -> list[int]:
    """Return the images by how far their latent is on the side of their mean, furthest first.

    Raises:
        InputError: if the images are not the recorded ones.
    """
    recorded = acts.labels().long()
    if not torch.equal(recorded[:: acts.n_rows // acts.n_images], labels):
        raise InputError(
            "the study's images are not the ones that were recorded; put those back, or make a "
            "study of these: `salve discover` with another --out"
        )
    batches = acts.batches(_BATCH)
    latents = torch.cat([dictionary.pre_activation(batch.x)[:, edit.latent] for batch in batches])
    latents = latents.detach().double().reshape(len(labels), -1).mean(1)
    candidates = torch.arange(len(labels)) if label is None else (labels == label).nonzero()[:, 0]
    sign = 1 if latents[candidates].mean() >= 0 else -1
    order = (sign * latents[candidates]).argsort(descending=True, stable=True)
    ordered: list[int] = candidates[order].tolist()
    return ordered
