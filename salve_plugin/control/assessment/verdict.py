"""The verdict: one sentence that says what an edit does, and when a control would have done."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from salve_plugin.control.assessment.outcomes import ConceptOutcome, ControlName, Effect
from salve_plugin.errors import printable
from salve_plugin.faces.table import percent

if TYPE_CHECKING:
    from salve_plugin.control.assessment.assessment import Assessment

TOLERANCE = 0.005
"""Half a point of accuracy: what two edits may differ by and still be as good as each other."""

PLAIN_NAMES: dict[ControlName, str] = {
    "mask": "a plain bias",
    "zero row": "a zeroed row",
    "difference of means": "the difference of means",
    "random latent": "a random latent",
    "random direction": "a random direction",
}
"""What controls are called in sentences, the plainest first."""


def verdict(assessment: "Assessment") -> str:
    """Return the verdict on an edit; percentages are of images."""
    what, cost = _achieved(assessment), _cost(assessment.effect, assessment)
    rival = best_control(assessment)
    text = f"{what}; {cost}" if cost else what
    # "As well" is to half a point; the other question asks whether the edit, in turn, falls behind.
    if rival is not None:
        effect = assessment.control(rival).effect
        better = not as_good(assessment.effect, effect)
        how = "does better" if better else "does as well"
        text += f"; {PLAIN_NAMES[rival]} {how}: {_numbers(effect, assessment)}"
    elif assessment.controls and not _does_nothing(assessment):
        text += f"; none of the {len(assessment.controls)} controls does as well"
    return text + "."


def best_control(assessment: "Assessment") -> ControlName | None:
    """Return the plainest control that is as good as the edit, None if none is.

    As good is: at the target and, on average and in the worst case, on the other classes no worse
    than the edit by more than `TOLERANCE`. An edit that does nothing to its target is matched by
    everything, so that no control is named for it.
    """
    # Whatever does nothing, too, would be as good as such an edit.
    if _does_nothing(assessment):
        return None
    names = {control.name: control.effect for control in assessment.controls}
    return next(
        (name for name in PLAIN_NAMES if name in names and as_good(names[name], assessment.effect)),
        None,
    )


def _does_nothing(assessment: "Assessment") -> bool:
    """Say whether an edit leaves its target as it was: whatever a control does is then as good."""
    concept = assessment.concept
    start = assessment.target_before if concept is None else _concept_aim(concept)
    aim = _aim(assessment.effect)
    return aim is None or start is None or aim >= start - TOLERANCE


def as_good(effect: Effect, other: Effect) -> bool:
    """Say whether an effect is as good as another, to `TOLERANCE`, at the target and elsewhere."""
    # Mine and theirs; of the aim, which is to be low, the other way round: in every pair more is
    # better.
    pairs: list[tuple[float | None, float | None]] = [
        (_aim(other), _aim(effect)),
        (effect.others, other.others),
        (effect.worst, other.worst),
    ]
    if effect.concept is not None and other.concept is not None:
        pairs.append((effect.concept.worst_group, other.concept.worst_group))
    return all(
        mine >= theirs - TOLERANCE
        for mine, theirs in pairs
        if mine is not None and theirs is not None
    )


def _aim(effect: Effect) -> float | None:
    """Return what is to be low: the class's accuracy, or what a concept still decides."""
    return effect.target if effect.concept is None else _concept_aim(effect.concept)


def _concept_aim(concept: ConceptOutcome) -> float:
    # Without pairs what is to be low is the error of the worst group.
    return 1 - concept.worst_group if concept.flips is None else concept.flips


def _achieved(assessment: "Assessment") -> str:
    effect = assessment.effect
    if assessment.concept is not None and effect.concept is not None:
        return _concept_sentence(assessment)
    if assessment.target is None or effect.target is None or assessment.target_before is None:
        return f"Accuracy {percent(assessment.accuracy)} before, {percent(effect.accuracy)} after"
    named = class_name(assessment, assessment.target)
    before, after = percent(assessment.target_before), percent(effect.target)
    if effect.target >= assessment.target_before - TOLERANCE:
        return f"Class {named} is not suppressed: {after} of its images keep the label of {before}"
    word = "suppressed" if effect.target <= assessment.target_before / 2 else "weakened"
    return (
        f"Class {named} is {word}, {_not_removed(assessment)}: {after} of its images keep the "
        f"label of {before}"
    )


def _not_removed(assessment: "Assessment") -> str:
    if assessment.reach == "head":
        return "not removed (the features stay as they were)"
    return "which does not say that it is removed (a probe of later layers does)"


def _concept_sentence(assessment: "Assessment") -> str:
    before, after = assessment.concept, assessment.effect.concept
    assert before is not None
    assert after is not None
    group = f"the worst group {percent(before.worst_group)} → {percent(after.worst_group)}"
    if before.flips is None or after.flips is None:
        weaker = after.worst_group > before.worst_group + TOLERANCE
        said = f"{group} labelled rightly"
    else:
        weaker = after.flips < before.flips - TOLERANCE
        said = f"it decides {percent(before.flips)} → {percent(after.flips)} of the pairs, {group}"
    if not weaker:
        return f"The concept is not suppressed: {said}"
    return f"The concept is suppressed, {_not_removed(assessment)}: {said}"


def _cost(effect: Effect, assessment: "Assessment") -> str:
    if effect.others is None or effect.worst is None or effect.worst_label is None:
        return ""
    whom = "other classes" if assessment.target is not None else "classes"
    return (
        f"{whom} {points(effect.others)} on average, {points(effect.worst)} at worst "
        f"({class_name(assessment, effect.worst_label)})"
    )


def _numbers(effect: Effect, assessment: "Assessment") -> str:
    aim = effect.target
    if effect.concept is not None:
        aim = effect.concept.flips
        if aim is None:
            aim = effect.concept.worst_group
    parts = [] if aim is None else [percent(aim)]
    parts += [] if effect.others is None else [f"{points(effect.others)} on average"]
    parts += [] if effect.worst is None else [f"{points(effect.worst)} at worst"]
    return ", ".join(parts)


def points(difference: float) -> str:
    """Return a difference of two shares in points, without a minus before nothing.

    >>> points(-0.0123), points(-0.0001)
    ('-1.2 points', '+0.0 points')
    """
    return f"{round(100 * difference, 1) + 0.0:+.1f} points"


def class_name(assessment: "Assessment", label: int, names: Sequence[str] = ()) -> str:
    """Return the name of a class with its row, or the row alone.

    Args:
        assessment: has names of its own classes.
        label: of any class.
        names: of all classes, if they are known.
    """
    known = names[label] if label < len(names) else None
    name = next((each.name for each in assessment.classes if each.label == label), known)
    # Names come from folders, and in an artifact from anybody: no terminal shall obey them.
    return str(label) if name is None else f"'{printable(name)}' ({label})"
