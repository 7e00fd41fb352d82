"""`assess`: the same images before and after an edit, its ideal and its controls."""

import hashlib
from collections.abc import Sequence
from typing import get_args

import torch

from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.batches import Batches
from salve_plugin.control.assessment.changes import Changes, check_subjects
from salve_plugin.control.assessment.controls import (
    Made,
    controls_of_class,
    controls_of_concept,
    ground_of,
)
from salve_plugin.control.assessment.hidden_predictions import HiddenPredictions
from salve_plugin.control.assessment.marks import Flags, flags_of, label_of, marked_by
from salve_plugin.control.assessment.outcomes import (
    ClassOutcome,
    Command,
    ConceptOutcome,
    Control,
    Evidence,
)
from salve_plugin.control.assessment.predictions import Predictions
from salve_plugin.control.assessment.sources import (
    Data,
    Joined,
    check_pairs,
    given_names,
    names_in,
    opened,
)
from salve_plugin.control.assessment.tally import Reference, Tally, concept_outcome
from salve_plugin.control.base import bare
from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_dictionary
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.integers import seed_number
from salve_plugin.network import OnBaseMismatch
from salve_plugin.store.digest import state_digest


@torch.no_grad()
def assess(
    hooked: HookedModel,
    edit: Edit,
    data: Data,
    *,
    target: int | str | None = None,
    has: Flags | None = None,
    counterparts: Data | None = None,
    dictionary: Dictionary | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    command: Command = "salve evaluate ARTIFACT --data FOLDER",
    on_base_mismatch: OnBaseMismatch = "error",
) -> Assessment:
    """Measure what an edit achieves and what it costs, on images that it was not chosen on.

    Nothing of the model is different afterwards, on error too. Sums are in float64 and in a fixed
    order; a recording is read twice and needs no memory but a batch, a loader is gone through once,
    with what the networks gave in a temporary file.

    Args:
        hooked: the attached model, without this edit (other edits may be on it).
        edit: what to assess.
        data: a recording of the classifier's input, for an edit of the classifier alone, which
            needs no network; or a loader of (images, labels) batches, for any edit.
        target: the class that the edit is to suppress, by index or name. Then its distance to the
            ideal is measured (the base's probabilities renormalized without the class, its images
            going to the runner-up), and the controls that suppress a class. None for an edit that
            enhances, or is about no class.
        has: for an edit that is to suppress a concept: whether each image of `data` has it,
            (images,). By default all, if there are counterparts.
        counterparts: the same images in the same order, without the concept where `data` has it
            and with it where `data` has not. They count as further images.
        dictionary: for the control along one of its latents, drawn at random; and if the edit is
            of its latents at its own site, for what their codes predict: at a hidden site on up to
            16 of the images, in 23 float64 passes for one latent, 62 at most for several.
        classes: class names by label, none if empty; by default the recording's or the data set's
            own.
        seed: of the random controls.
        command: how to measure again on the command line, for the record.
        on_base_mismatch: "warn" goes on with another base or recording of another network.

    Raises:
        InputError: if the data has no images (of the target), a label is no class of the model, a
            recording cannot tell what the edit does, `has` and the pairs do not fit the images, or
            names or seed cannot be used.
        BaseMismatchError: if the model is not the edit's base, or the recording not of the model.
        EditStateError: if the edit is on the model already.
    """
    check_subjects(hooked, edit)
    if command not in get_args(Command):
        raise InputError(f"command {command!r:.200} is none of {list(get_args(Command))}")
    seed = seed_number(seed)
    if dictionary is not None:
        check_dictionary(dictionary)
    concept = has is not None or counterparts is not None
    if concept and target is not None:
        raise InputError(
            f"target={target!r} and a concept (has, counterparts) are two aims; assess one"
        )
    names = names_in(data, hooked) if classes is None else given_names(classes, hooked)
    label = None if target is None else label_of(target, names)
    # Before anything is applied: the model as it is given, other edits on it included.
    model = state_digest(bare(hooked))
    changes = Changes.of(hooked, edit, on_base_mismatch)
    predictions = Predictions.of(hooked, edit, dictionary, changes, label, seed)
    hidden = HiddenPredictions.of(
        hooked, edit, changes, dictionary,
        on_base_mismatch=on_base_mismatch, target=label, seed=seed,
    )  # fmt: skip
    sources = [data] if counterparts is None else [data, counterparts]
    sample = None if hidden is None else hidden.sample
    with opened(hooked, edit, changes, sources, on_base_mismatch, sample) as batches:
        pairs = 0 if counterparts is None else check_pairs(batches)
        joined = Joined(batches)
        labels = joined.labels()
        # The caller speaks of the images alone; what their counterparts are follows.
        flags = flags_of(has, pairs or len(labels), pairs) if concept else None
        if label is not None and not bool((labels == label).any()):
            raise InputError(f"there are no images of the target, class {label}; choose other data")
        made: list[Made] = []
        # A pass of its own: controls are made of means and ranges over all images.
        if concept or label is not None:
            marked = marked_by(flags, label)
            ground = ground_of(joined, changes.head, changes.edited_head, marked)
            made = (
                controls_of_concept(ground, seed, dictionary)
                if label is None
                else controls_of_class(ground, label, seed, dictionary)
            )
        tallies = _tallies(joined, made, predictions, label, keep=concept)
    # One of them at most: an edit changes the classifier alone, or something in front of it.
    predicted = predictions or hidden

    def told(tally: Tally) -> ConceptOutcome | None:
        if flags is None:
            return None
        return concept_outcome(labels, flags, torch.cat(tally.predicted), pairs)

    before, after, *others = tallies
    base = before.evaluation
    controls = tuple(
        Control(tally.effect(base, told(tally)), control.name, control.norm)
        for control, tally in zip(made, others, strict=True)
    )
    return Assessment(
        accuracy=base.overall,
        budget=changes.budget,
        classes=_outcomes(before, after, changes, names),
        concept=told(before),
        controls=controls,
        edit=edit.digest,
        effect=after.effect(base, told(after)),
        evidence=Evidence(
            command,
            joined.images,
            hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
            model,
            joined.recording,
            seed,
        ),
        images=len(labels),
        predictions=() if predicted is None else predicted.records(),
        reach="head" if changes.is_of_head else "hidden",
        target=label,
        target_before=None if label is None else float(base.accuracy[label]),
    )


def _tallies(
    images: Batches,
    made: Sequence[Made],
    predictions: Predictions | None,
    label: int | None,
    *,
    keep: bool,
) -> list[Tally]:
    """Count the base, the edit, and every control, in one pass; add up predictions too."""
    tallies: list[Tally] = []
    for batch in images:
        # How many classes there are, the logits of the first batch tell.
        if not tallies:
            classes = batch.before.shape[1]
            if label is not None and classes < 2:
                raise InputError(
                    "a model of one class has no runner-up: leave out target, and assess its edits "
                    "by accuracy"
                )
            tallies = [Tally(classes, label, keep=keep) for _ in range(2 + len(made))]
        reference = Reference(batch.labels, batch.before, label)
        several = (batch.before, batch.after, *(control.logits(batch) for control in made))
        for tally, logits in zip(tallies, several, strict=True):
            tally.add(reference, logits)
        if predictions is not None:
            predictions.add(batch)
    if not tallies:
        raise InputError("there are no images to assess")
    return tallies


def _outcomes(
    before: Tally, after: Tally, changes: Changes, names: Sequence[str] | None
) -> tuple[ClassOutcome, ...]:
    """Return what became of every class that has images or whose row was touched."""
    count = before.evaluation.count
    zeroed = changed = torch.zeros_like(count)
    bias = torch.zeros(len(count), dtype=torch.float64)
    if changes.head is not None and changes.edited_head is not None:
        old, new = changes.head, changes.edited_head
        changed = (old.weight != new.weight).sum(1)
        zeroed = ((old.weight != 0) & (new.weight == 0)).sum(1)
        bias = new.bias - old.bias
    listed = (count > 0) | (changed > 0) | (bias != 0)
    accuracies = [tally.evaluation.accuracy.tolist() for tally in (before, after)]
    spreads = [tally.spread.tolist() for tally in (before, after)]
    outcomes = []
    for label in listed.nonzero()[:, 0].tolist():
        images = int(count[label])
        # A copy: the row is a view of the tally's own counts.
        elsewhere = after.confusion[label].clone()
        elsewhere[label] = 0
        most = int(elsewhere.max())
        own = [float(tally.probability[label]) / max(images, 1) for tally in (before, after)]
        outcomes.append(
            ClassOutcome(
                accuracy=(accuracies[0][label], accuracies[1][label]) if images else None,
                bias_change=float(bias[label]),
                count=images,
                destination=int(elsewhere.argmax()) if most else None,
                destination_share=most / images if images else 0.0,
                label=label,
                name=names[label] if names is not None and label < len(names) else None,
                # Rounding may leave a mean of probabilities just above 1, which the record refuses.
                probability=(min(own[0], 1.0), min(own[1], 1.0)) if images else None,
                spread=(spreads[0][label], spreads[1][label]),
                weights_changed=int(changed[label]),
                weights_zeroed=int(zeroed[label]),
            )
        )
    return tuple(outcomes)
