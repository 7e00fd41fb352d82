"""`assess`: the same images before and after an edit, its ideal and its controls."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.batches import Batch, Batches, Head, Recorded, Spooled, run
from salve_plugin.control.assessment.budget import budget_of
from salve_plugin.control.assessment.controls import (
    Made,
    controls_of_class,
    controls_of_concept,
    ground_of,
)
from salve_plugin.control.assessment.outcomes import (
    Budget,
    ClassOutcome,
    Command,
    ConceptOutcome,
    Control,
    Evidence,
)
from salve_plugin.control.assessment.tally import Tally, concept_outcome
from salve_plugin.control.base import bare
from salve_plugin.control.edit import Edit
from salve_plugin.control.networks import Networks
from salve_plugin.control.operators.base import whole
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.loader import class_names
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch
from salve_plugin.store.digest import state_digest

Data = Activations | Iterable[Any]
"""A recording of the classifier's input, or an iterable of (images, labels) batches."""

Flags = Sequence[bool] | Tensor


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
        dictionary: for the control along one of its latents, drawn at random.
        classes: class names by label; by default the recording's or the data set's own.
        seed: of the random controls.
        command: how to measure again on the command line, for the record.
        on_base_mismatch: "warn" goes on with another base or recording of another network.

    Raises:
        InputError: if the data has no images (of the target), a label is no class of the model, a
            recording cannot tell what the edit does, or `has` and the pairs do not fit the images.
        BaseMismatchError: if the model is not the edit's base, or the recording not of the model.
        EditStateError: if the edit is on the model already.
    """
    if not isinstance(hooked, HookedModel) or not isinstance(edit, Edit):
        raise InputError(
            f"an attached model and an edit were expected, got {type(hooked).__name__} and "
            f"{type(edit).__name__}: pass salve.attach(model) and e.g. salve.suppress(...)"
        )
    if command not in get_args(Command):
        raise InputError(f"command {command!r:.200} is none of {list(get_args(Command))}")
    concept = has is not None or counterparts is not None
    if concept and target is not None:
        raise InputError(
            f"target={target!r} and a concept (has, counterparts) are two aims; assess one"
        )
    names = tuple(classes) if classes is not None else _names(data)
    label = None if target is None else _label(target, names)
    model = state_digest(bare(hooked))
    changes = _Changes.of(hooked, edit, on_base_mismatch)
    sources = [data] if counterparts is None else [data, counterparts]
    with _opened(hooked, edit, changes, sources, on_base_mismatch) as batches:
        pairs = 0 if counterparts is None else _check_pairs(batches)
        joined = _Joined(batches)
        flags = _flags(has, joined, pairs) if concept else None
        marked = _marked(flags, label)
        ground = ground_of(joined, changes.head, changes.edited_head, marked)
        made: list[Made] = []
        if label is not None:
            _check_target(joined, label)
            made = controls_of_class(ground, label, seed, dictionary)
        elif concept:
            made = controls_of_concept(ground, seed, dictionary)
        tallies = _tallies(joined, made, label, keep=concept)
        labels = torch.cat([batch.labels for batch in joined])

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
        reach="head" if changes.is_of_head else "hidden",
        target=label,
        target_before=None if label is None else float(base.accuracy[label]),
    )


@dataclass(frozen=True, eq=False)
class _Changes:
    """What an edit makes of the parameters, without an image.

    Attributes:
        head: the classifier before; None if the model has no site there.
        edited_head: after.
        budget: what is spent.
        is_of_head: whether nothing but the classifier's layers changes.
    """

    head: Head | None
    edited_head: Head | None
    budget: Budget
    is_of_head: bool

    @classmethod
    def of(cls, hooked: HookedModel, edit: Edit, mismatch: OnBaseMismatch) -> "_Changes":
        model, paths = bare(hooked), sorted(edit.base.tensors)
        head = Head.of(hooked)
        # Applied for a moment and not computed anew: what is assessed is what `apply_` writes.
        with edit.applied(model, on_base_mismatch=mismatch):
            edited = Head.of(hooked)
            after = {path: model.get_parameter(path).detach().clone() for path in paths}
        before = {path: model.get_parameter(path).detach().clone() for path in paths}
        layers = {path.rpartition(".")[0] for path in paths}
        return cls(head, edited, budget_of(edit, before, after), layers <= set(hooked.heads))


@contextmanager
def _opened(
    hooked: HookedModel,
    edit: Edit,
    changes: _Changes,
    sources: Sequence[Data],
    mismatch: OnBaseMismatch,
) -> Iterator[list[Batches]]:
    """Open every source; temporary files are removed at the end."""
    batches: list[Batches] = []
    spools: list[Spooled] = []
    try:
        for data in sources:
            if isinstance(data, Activations):
                batches.append(_recorded(hooked, edit, changes, data, mismatch))
            else:
                spools.append(run(hooked, edit, data, mismatch))
                batches.append(spools[-1])
        yield batches
    finally:
        for spool in spools:
            spool.close()


def _recorded(
    hooked: HookedModel, edit: Edit, changes: _Changes, acts: Activations, mismatch: OnBaseMismatch
) -> Recorded:
    reads = hooked.head_sites
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


class _Joined(Batches):
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[Batches]) -> None:
        self._sources = sources
        self.images = _joined([source.images for source in sources])

    @property
    def recording(self) -> str | None:
        """Digest of the recorded inputs of all of them."""
        return _joined([source.recording for source in self._sources])

    def __iter__(self) -> Iterator[Batch]:
        for source in self._sources:
            yield from source


def _joined(digests: list[str | None]) -> str | None:
    """Return one digest of several: itself, if there is one only; None if one is not known."""
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    return known[0] if len(known) == 1 else hashlib.sha256("".join(known).encode()).hexdigest()


def _check_pairs(sources: Sequence[Batches]) -> int:
    """Return the number of pairs.

    Raises:
        InputError: if the counterparts have other labels.
    """
    first, second = (torch.cat([batch.labels for batch in source]) for source in sources)
    if not torch.equal(first, second):
        raise InputError(
            f"{len(first)} images with {len(second)} counterparts of other labels: the "
            "counterparts are the same images in the same order"
        )
    return len(first)


def _flags(has: Flags | None, images: Batches, pairs: int) -> Tensor:
    """Return whether each image has the concept, the counterparts included.

    Raises:
        InputError: if the flags are no truth values, not one an image, or all the same.
    """
    count = sum(len(batch.labels) for batch in images)
    own = pairs or count
    given = torch.ones(own, dtype=torch.bool) if has is None else torch.as_tensor(has).cpu()
    if given.dtype != torch.bool or given.shape != (own,):
        raise InputError(
            f"has is {given.dtype} of shape {list(given.shape)}; expected one truth value for each "
            f"of {own} images"
        )
    flags = torch.cat([given, ~given]) if pairs else given
    if bool(flags.all()) or not bool(flags.any()):
        raise InputError(
            f"all {own} images are said to be alike in the concept; give images with and without "
            "it, or counterparts"
        )
    return flags


def _marked(flags: Tensor | None, label: int | None) -> Callable[[Tensor, int], Tensor]:
    def marked(labels: Tensor, start: int) -> Tensor:
        if flags is not None:
            return flags[start : start + len(labels)]
        return labels == (-1 if label is None else label)

    return marked


def _check_target(images: Batches, label: int) -> None:
    classes, count = 0, 0
    for batch in images:
        classes = batch.before.shape[1]
        count += int((batch.labels == label).sum())
    if not 0 <= label < classes or classes < 2:
        raise InputError(f"target {label} is none of the model's classes 0 to {classes - 1}")
    if not count:
        raise InputError(f"there are no images of the target, class {label}; choose other data")


def _tallies(
    images: Batches, made: Sequence[Made], label: int | None, *, keep: bool
) -> list[Tally]:
    """Count the base, the edit, and every control, in one pass."""
    tallies: list[Tally] = []
    for batch in images:
        if not tallies:
            classes = batch.before.shape[1]
            tallies = [Tally(classes, label, keep=keep) for _ in range(2 + len(made))]
        several = (batch.before, batch.after, *(control.logits(batch) for control in made))
        for tally, logits in zip(tallies, several, strict=True):
            tally.add(batch.labels, batch.before, logits)
    if not tallies:
        raise InputError("there are no images to assess")
    return tallies


def _outcomes(
    before: Tally, after: Tally, changes: _Changes, names: Sequence[str] | None
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
                probability=(min(own[0], 1.0), min(own[1], 1.0)) if images else None,
                spread=(spreads[0][label], spreads[1][label]),
                weights_changed=int(changed[label]),
                weights_zeroed=int(zeroed[label]),
            )
        )
    return tuple(outcomes)


def _names(data: Data) -> tuple[str, ...] | None:
    return data.classes if isinstance(data, Activations) else class_names(data, None)


def _label(target: int | str, names: Sequence[str] | None) -> int:
    if not isinstance(target, str):
        return whole(target, "target")
    if names is None or target not in names:
        raise InputError(
            f"target {target!r} is no class name of the data; there are "
            f"{'none' if names is None else list(names)[:20]}"
        )
    return list(names).index(target)
