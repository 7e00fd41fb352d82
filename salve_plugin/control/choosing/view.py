"""The concept's images as the classifier gets them, once edits of earlier layers are in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.concepts.concept import Concept
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError

COMPARED = 4096
"""Images whose features are compared at once."""


@dataclass(frozen=True, eq=False)
class View:
    """What the classifier gets of the concept's images.

    Attributes:
        head: the classifier with its inputs.
        concept: with the recordings of those.
    """

    head: JudgedHead
    concept: Concept

    @classmethod
    def now(cls, head: JudgedHead, concept: Concept, images: Sequence[Iterable[Any]]) -> "View":
        """Record the concept's images anew, with whatever edits are on the model now.

        Raises:
            InputError: if the images are not those of the concept's recordings.
        """
        again = tuple(
            record(head.hooked, loader, head.site.name, progress=False) for loader in images
        )
        # The features differ by now, and cannot tell whether the images are the same ones.
        for before, after in zip(concept.recordings, again, strict=True):
            if before.labels_sha256 != after.labels_sha256:
                raise InputError(
                    f"images holds {after.n_images} images whose labels are not those of the "
                    f"recording of {before.n_images}; pass the very images, in the same order"
                )
        # Which images have the concept, and how strongly, stays as it was found.
        return cls(JudgedHead.of(head.hooked, again), replace(concept, recordings=again))


def check_images(head: JudgedHead, concept: Concept, images: Sequence[Iterable[Any]]) -> None:
    """Compare loaders with the concept's recordings: their number, and every image of each.

    It takes a pass over the images. Labels alone would not tell two images of a class apart.

    Raises:
        InputError: if they are not as many, can be read only once, are empty, or of other images.
    """
    recordings = concept.recordings
    if len(images) != len(recordings):
        raise InputError(
            f"images holds {len(images)} loaders, and the concept '{concept.name}' was found "
            f"in {len(recordings)} recordings; pass images=[loader, ...], one for each"
        )
    for loader, recording in zip(images, recordings, strict=True):
        _check_loader(head, loader, recording)


def _check_loader(head: JudgedHead, loader: Iterable[Any], recording: Activations) -> None:
    if isinstance(loader, torch.Tensor) or not isinstance(loader, Iterable):
        raise InputError(
            f"images holds a {type(loader).__name__}, which is no loader; pass images=[loader, "
            "...], each of them batches of (images, labels)"
        )
    # Only an iterator is its own iterator.
    if iter(loader) is loader:
        raise InputError(
            "images are read more than once, and an iterator can be read once: give a list of "
            "batches, or a DataLoader that does not shuffle"
        )
    if next(iter(loader), None) is None:
        raise InputError("images holds an empty loader; pass the concept's images")
    own = record(head.hooked, loader, head.site.name, progress=False)
    if own.n_images != recording.n_images:
        raise InputError(
            f"images holds a loader of {own.n_images} images where {recording.n_images} were "
            "recorded for the concept; pass the very images, in the recorded order"
        )
    for start, mine, its in zip(
        range(0, own.n_images, COMPARED), own.batches(COMPARED), recording.batches(COMPARED),
        strict=True,
    ):  # fmt: skip
        # Batches of other sizes are summed in another order.
        same = torch.isclose(mine.x, its.x, rtol=1e-3, atol=1e-4).all(1)
        if not bool(same.all()):
            raise InputError(
                f"image {start + int(same.long().argmin())} is not the one that was recorded for "
                "the concept; pass the very images, in the recorded order (a DataLoader must not "
                "shuffle)"
            )
