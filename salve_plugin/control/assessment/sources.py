"""Where the images of an assessment come from: recordings and loaders, one or two of them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from salve_plugin.control.assessment.batches import Batch, Batches, Recorded, Spooled, run
from salve_plugin.control.assessment.changes import Changes
from salve_plugin.control.assessment.image_sample import ImageSample
from salve_plugin.control.edit import Edit
from salve_plugin.control.networks import Networks
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import Labels, check_of_model, n_outputs
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.kinds import several
from salve_plugin.network import OnBaseMismatch

Data = Activations | Iterable[Any]
"""A recording of the classifier's input, or an iterable of (images, labels) batches."""


def names_in(data: Data, hooked: HookedModel) -> tuple[str, ...] | None:
    """Return the class names that the data itself knows, by the model's class index.

    Raises:
        InputError: if the names are not those of the model's classes, nor one for each.
    """
    if isinstance(data, Activations):
        check_of_model(data.classes, n_outputs(hooked) or data.n_classes)
        return data.classes
    return Labels.of(hooked.model, n_outputs(hooked), data).classes


def given_names(classes: Sequence[str], hooked: HookedModel) -> tuple[str, ...] | None:
    """Return class names that a caller gives; None of an empty list.

    Raises:
        InputError: if they are not one for each class of the model.
    """
    # A text is a sequence of texts, too: its letters would pass for names.
    names = () if isinstance(classes, str) else several(classes, "classes", "names of classes")
    expected = n_outputs(hooked) or len(names)
    if isinstance(classes, str) or (names and len(names) != expected):
        raise InputError(
            f"classes {classes!r:.200} are to be a list of {expected} names, one for each class of "
            "the model by its index; leave them out to take those of the data"
        )
    return names or None


@contextmanager
def opened(
    hooked: HookedModel,
    edit: Edit,
    changes: Changes,
    sources: Sequence[Data],
    mismatch: OnBaseMismatch,
    sample: ImageSample | None = None,
) -> Iterator[list[Batches]]:
    """Open every source, leaving some images in `sample`; temporary files are removed at the end.

    Raises:
        SalveError: as `salve_plugin.assess`.
    """
    batches: list[Batches] = []
    # Closed even if a later source cannot be opened.
    spools: list[Spooled] = []
    try:
        for data in sources:
            if isinstance(data, Activations):
                batches.append(_recorded(hooked, edit, changes, data, mismatch))
            else:
                spools.append(run(hooked, edit, data, mismatch, sample))
                batches.append(spools[-1])
        yield batches
    finally:
        for spool in spools:
            spool.close()


def _recorded(
    hooked: HookedModel, edit: Edit, changes: Changes, acts: Activations, mismatch: OnBaseMismatch
) -> Recorded:
    reads = hooked.head_sites
    # Only an edit of the classifier alone leaves its inputs as they were recorded.
    if not changes.is_of_head or reads != (acts.site.name,):
        raise InputError(
            f"a recording of '{acts.site.name}' cannot tell what an edit of "
            f"{sorted(edit.base.tensors)} does to a model whose classifier reads {list(reads)}: "
            "pass a loader of (images, labels)"
        )
    networks = Networks(hooked, mismatch, pristine=edit.base.network)
    networks.check_present("the recording", acts.network_sha256)
    assert changes.head is not None  # it has a site
    assert changes.edited_head is not None
    return Recorded(acts, changes.head, changes.edited_head)


class Joined(Batches):
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[Batches]) -> None:
        """Read nothing yet."""
        self._sources = sources
        self.images = _joined([source.images for source in sources])

    def labels(self) -> Tensor:
        """Return the labels of all images."""
        return torch.cat([source.labels() for source in self._sources])

    @property
    def recording(self) -> str | None:
        """Digest of the recorded inputs of all of them."""
        return _joined([source.recording for source in self._sources])

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of all of them."""
        for source in self._sources:
            yield from source


def _joined(digests: list[str | None]) -> str | None:
    """Return one digest of several: itself, if there is one only; None if one is not known."""
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    # Hex digests are of one length, so that no two lists have the same text.
    return known[0] if len(known) == 1 else hashlib.sha256("".join(known).encode()).hexdigest()


def check_pairs(sources: Sequence[Batches]) -> int:
    """Return the number of pairs.

    Raises:
        InputError: if the counterparts have other labels.
    """
    first, second = (source.labels() for source in sources)
    if not torch.equal(first, second):
        raise InputError(
            f"{len(first)} images with {len(second)} counterparts of other labels: the "
            "counterparts are the same images in the same order"
        )
    return len(first)
