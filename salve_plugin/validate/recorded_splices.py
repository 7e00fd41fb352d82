"""What the model does with reconstructions on a recording's held-out images."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import model_batches
from salve_plugin.discover.recording.loader import LabelledImages
from salve_plugin.errors import BaseMismatchError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Rewrite
from salve_plugin.validate.evidence.head import reads_nothing_else
from salve_plugin.validate.held_out import HeldOut
from salve_plugin.validate.splicing import Splice, splice_head, splice_images


def recorded_splices(
    dictionaries: Mapping[str, Dictionary],
    acts: Activations,
    data: HeldOut,
    hooked: HookedModel,
    loader: Iterable[Any] | None,
) -> dict[str, Splice]:
    """Splice every dictionary into the model, on the held-out images.

    Args:
        dictionaries: by name, of the recording's site.
        acts: the recording.
        data: its held-out images.
        hooked: the recorded model.
        loader: what was recorded; needed only where the model has to run.

    Raises:
        InputError: if images have several labels or targets, or the loader is missing where it is
            needed or not the recorded one.
        BaseMismatchError: if the model has no such site.
        ReadError: if an image cannot be read.
    """
    acts.labels()  # cross-entropy and accuracy are of one class an image
    site = acts.site
    if hooked.sites.get(site.name) != site:
        raise BaseMismatchError(
            f"the model has no site '{site.name}' as it was recorded: it has "
            f"{hooked.sites.get(site.name, list(hooked.sites))}; attach the recorded model"
        )
    rewrites = {name: _rewrite(dictionary) for name, dictionary in dictionaries.items()}
    # Where the classifier reads nothing else, the head is all of the model that is left to run.
    if reads_nothing_else(hooked, site):
        weight, bias = hooked.unembed(site)
        return splice_head(weight, bias, data.x, data.labels, rewrites, mean=data.mean)
    if loader is None:
        raise InputError(
            f"site '{site.name}' is not all that the classifier reads, so splicing must run the "
            "model: pass the recorded `loader` too, or leave out `hooked`"
        )
    batches = _chosen(model_batches(hooked, loader), acts, data)
    return splice_images(hooked, site, batches, rewrites, mean=data.mean)


def _rewrite(dictionary: Dictionary) -> Rewrite:
    """Return the function from rows to their reconstructions, on the rows' device."""

    def rewrite(rows: Tensor) -> Tensor:
        result: Tensor = dictionary(rows.to(dictionary.atoms.device))
        return result.to(rows.device)

    return rewrite


def _chosen(
    batches: Iterator[LabelledImages], acts: Activations, data: HeldOut
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the held-out images of the recorded loader; in the end, raise if it is another one."""
    # Streamed, not gathered: only the batches with held-out images are run.
    is_chosen = torch.zeros(acts.n_images, dtype=torch.bool)
    is_chosen[data.chosen] = True
    # The same labels in the same order are taken for the same images; pixels were not recorded.
    digest = hashlib.sha256()
    start = 0
    for batch in batches:
        digest.update(batch.labels.numpy().tobytes())
        chosen_in_batch = is_chosen[start : start + len(batch.labels)]
        start += len(batch.labels)
        # A loader of more images than were recorded runs past the end, which is reported below.
        if len(chosen_in_batch) == len(batch.labels) and bool(chosen_in_batch.any()):
            yield (
                batch.images[chosen_in_batch.to(batch.images.device)],
                batch.labels[chosen_in_batch],
            )
    if start != acts.n_images or digest.hexdigest() != acts.labels_sha256:
        raise InputError(
            f"the loader yields {start} images, or other labels in another order, than the "
            f"{acts.n_images} that were recorded; pass the loader that `record` was given"
        )
