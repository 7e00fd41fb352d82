"""What is left to do at the classifier once hidden layers are edited, and whether that is worth it.

A direction that the classifier reads carries the class as well as the concept, so what an eraser
there can take is bounded. Hidden layers hold the two further apart: edits there change the features
themselves, and the classifier's edit takes what is left.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from salve_plugin.control.choosing.candidate import Candidate, Choice, best_of
from salve_plugin.control.choosing.concept_edits import removing
from salve_plugin.control.choosing.goals import RemoveConcept, RemoveShortcut
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.edit import Edit
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError


def after_hidden(
    head: JudgedHead, alone: Choice, hidden: Sequence[Edit], images: Sequence[Iterable[Any]],
    nothing: Edit,
) -> Choice:  # fmt: skip
    """Return the better of an edit of the classifier alone and one that comes after hidden edits.

    Both are measured against the model as it was given. The hidden edits are in place while this
    runs, and every bit is back when it returns or fails.

    Args:
        head: the classifier with the concept's images, as the model was given.
        alone: what was chosen for the classifier alone.
        hidden: edits of hidden layers.
        images: of each of the concept's recordings, in the recorded order.
        nothing: the edit that changes nothing.

    Raises:
        InputError: if the images are not those of the recordings, or an edit is of the classifier.
    """
    goal = alone.goal
    assert isinstance(goal, RemoveConcept | RemoveShortcut)
    recordings = goal.concept.recordings
    if len(images) != len(recordings):
        raise InputError(
            f"images holds {len(images)} loaders, and the concept '{goal.concept.name}' was found "
            f"in {len(recordings)} recordings; pass images=[loader, ...], one for each"
        )
    for edit in hidden:
        if edit.site.name == head.site.name:
            raise InputError(
                f"hidden holds an edit of '{edit.site.name}', which is the classifier's input; "
                "pass edits of earlier sites, such as salve.erase_through(...) makes"
            )
    for loader, recording in zip(images, recordings, strict=True):
        _check_images(head, loader, recording)
    with ExitStack() as stack:
        for edit in hidden:
            stack.enter_context(edit.applied(head.hooked.model))
        again = tuple(
            record(head.hooked, loader, head.site.name, progress=False) for loader in images
        )
        for before, after in zip(recordings, again, strict=True):
            if before.labels_sha256 != after.labels_sha256:
                raise InputError(
                    f"images holds {after.n_images} images whose labels are not those of the "
                    f"recording of {before.n_images}; pass the very images, in the same order"
                )
        # Which images have the concept, and how strongly, stays as it was found.
        concept = replace(goal.concept, recordings=again)
        edited = JudgedHead.of(head.hooked, again)
        rest = removing(edited, replace(goal, concept=concept), nothing, reference=head)

    def together(one: Candidate) -> Candidate:
        method = f"after {len(hidden)} hidden edits: {one.method}"
        return replace(one, method=method, hidden=tuple(hidden), is_control=False)

    # The classifier alone comes first: what does no more than that is not worth more edits.
    both = [alone.chosen, together(rest.chosen)]
    chosen, met = best_of(both, alone.enough, goal.max_harm)
    tried = (*alone.tried, *map(together, rest.tried))
    return replace(alone, chosen=chosen, met=met, tried=tried)


def _check_images(head: JudgedHead, loader: Iterable[Any], recording: Activations) -> None:
    """Compare the first batch with the rows that were recorded of it.

    Raises:
        InputError: if it can be read only once, is empty, or its images are others.
    """
    # Only an iterator is its own iterator.
    if iter(loader) is loader:
        raise InputError(
            "images are read more than once, and an iterator can be read once: give a list of "
            "batches, or a DataLoader that does not shuffle"
        )
    first = next(iter(loader), None)
    if first is None:
        raise InputError("images holds an empty loader; pass the concept's images")
    own = record(head.hooked, [first], head.site.name, progress=False).tensor()
    recorded = next(recording.batches(len(own))).x
    # Batches of other sizes are summed in another order.
    if own.shape != recorded.shape or not torch.allclose(own, recorded, rtol=1e-3, atol=1e-4):
        raise InputError(
            f"the first {len(own)} images are not those that were recorded for the concept; pass "
            "the very images, in the recorded order (a DataLoader must not shuffle)"
        )
