"""An assessment as rows of short texts, for terminals and cards."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from salve_plugin.control.assessment.outcomes import MOST_RUN, ClassOutcome, Effect
from salve_plugin.control.assessment.verdict import class_name
from salve_plugin.faces.one_line import listed
from salve_plugin.faces.table import aligned, percent

if TYPE_CHECKING:
    from salve_plugin.control.assessment.assessment import Assessment

CLASS_COLUMNS = (
    "class", "images", "right", "probability", "logit spread", "most go to", "weights changed",
    "zeroed", "bias",
)  # fmt: skip
CONTROL_COLUMNS = (
    "in the edit's place", "target right", "others", "worst", "KL elsewhere", "KL to ideal",
    "runner-up", "‖ΔW‖",
)  # fmt: skip
CONCEPT_COLUMNS = (
    "in the edit's place", "flips", "worst group", "right with", "right without", "KL", "‖ΔW‖",
)  # fmt: skip
NOTHING = "—"


def class_rows(
    assessment: "Assessment", most: int = 12, names: Sequence[str] | None = None
) -> list[tuple[str, ...]]:
    """Return one row a class, under `CLASS_COLUMNS`: before → after.

    Where there are more than `most`: the target, then those with the greatest loss, then those
    whose rows changed, then the others. An assessment has the names of its own classes: those of
    all are given, for images that go to others.
    """
    kept = sorted(assessment.classes, key=lambda each: _rank(each, assessment.target))[:most]
    kept.sort(key=lambda each: each.label)
    return [_class_row(each, assessment, names or ()) for each in kept]


def _rank(outcome: ClassOutcome, target: int | None) -> tuple[bool, float, float, int]:
    change = 0.0 if outcome.accuracy is None else outcome.accuracy[1] - outcome.accuracy[0]
    touched = -float(outcome.weights_changed) - float(outcome.bias_change != 0)
    # Ascending: the target, whose answer is False, then the greatest loss, the most weights, the
    # label.
    return outcome.label != target, min(change, 0.0), touched, outcome.label


def _class_row(
    outcome: ClassOutcome, assessment: "Assessment", names: Sequence[str]
) -> tuple[str, ...]:
    where = NOTHING
    if outcome.destination is not None:
        named = class_name(assessment, outcome.destination, names)
        where = f"{named} {percent(outcome.destination_share)}"
    return (
        class_name(assessment, outcome.label),
        str(outcome.count),
        _pair(outcome.accuracy, percent),
        _pair(outcome.probability, lambda value: f"{value:.3f}"),
        _pair(outcome.spread, lambda value: f"{value:.3g}"),
        where,
        str(outcome.weights_changed),
        str(outcome.weights_zeroed),
        f"{outcome.bias_change:+.3g}" if outcome.bias_change else NOTHING,
    )


def control_columns(assessment: "Assessment") -> tuple[str, ...]:
    """Return the heads of `control_rows`: of a concept there is no ideal and no target class."""
    return CONTROL_COLUMNS if assessment.concept is None else CONCEPT_COLUMNS


def control_rows(assessment: "Assessment") -> list[tuple[str, ...]]:
    """Return the edit and every control under `control_columns`."""
    # Of weights alone, as the controls' are: what a bias moves is no share of the norm that they
    # were given.
    named = [("the edit", assessment.effect, assessment.budget.weight_norm)]
    named += [
        (each.name, each.effect, 0.0 if each.norm is None else each.norm)
        for each in assessment.controls
    ]
    if assessment.concept is None:
        return [_control_row(*each) for each in named]
    return [_concept_row(*each) for each in named]


def _control_row(name: str, effect: Effect, norm: float) -> tuple[str, ...]:
    ideal = effect.ideal
    return (
        name,
        _share(effect.target),
        _signed(effect.others),
        _signed(effect.worst),
        _number(effect.kl_others),
        NOTHING if ideal is None else _number(ideal.kl_target),
        NOTHING if ideal is None else _share(ideal.runner_up),
        _number(norm) if norm else NOTHING,
    )


def _concept_row(name: str, effect: Effect, norm: float) -> tuple[str, ...]:
    concept = effect.concept
    assert concept is not None
    return (
        name,
        _share(concept.flips),
        _share(concept.worst_group),
        _share(concept.accuracy_with),
        _share(concept.accuracy_without),
        _number(effect.kl_others),
        _number(norm) if norm else NOTHING,
    )


def budget_line(assessment: "Assessment") -> str:
    """Return in one line what the edit spends."""
    parts = [
        f"{each.path} rank {each.rank}, ‖ΔW‖ {each.norm:.4g}"
        + ("" if each.relative is None else f" ({percent(each.relative)} of ‖W‖)")
        + f", {each.changed} weights"
        for each in assessment.budget.parameters
    ]
    return f"Budget: {'; '.join(parts)}; {assessment.budget.bytes} bytes travel."


def prediction_lines(assessment: "Assessment") -> list[str]:
    """Return in a line or two what the dictionary's codes say of the edit's effect, if measured."""
    if not assessment.predictions:
        return []
    last = assessment.predictions[-1]
    several = len(last.latents) > 1
    codes = f"the codes of latent{'s' * several} {listed(last.latents).strip('[]')}"
    share = f"{percent(last.explained)} of the change of the logits"
    others = "there are no other latents to compare with"
    if last.explained_null is not None:
        others = f"other latents in {'their' if several else 'its'} place: up to "
        others += percent(last.explained_null)
    how = "Predicted against measured"
    if assessment.reach == "hidden":
        how += f" (to first order, on at most {MOST_RUN} images)"
    lines = [
        f"{how}: {codes} predict {share} ({others})."
        if last.holds
        else f"{how}: {codes} do not predict what the edit does: {share}, {others}."
    ]
    if last.r2 is not None and assessment.target is not None:
        lines.append(
            f"Of the logit of class {class_name(assessment, assessment.target)}: R² {last.r2:.3f} "
            f"over images, slope {last.slope:.3g}."
        )
    return lines


def text_of(assessment: "Assessment", most: int, names: Sequence[str] | None) -> str:
    """Return all of an assessment as plain text: classes, controls, budget and verdict."""
    rows = class_rows(assessment, most, names)
    left_out = len(assessment.classes) - len(rows)
    parts = [aligned([CLASS_COLUMNS, *rows])]
    parts += [f"and {left_out} classes more"] if left_out else []
    parts += ["", aligned([control_columns(assessment), *control_rows(assessment)])]
    parts += ["", budget_line(assessment), *prediction_lines(assessment), assessment.verdict]
    return "\n".join(parts)


def _pair(values: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    if values is None:
        return NOTHING
    before, after = (shown(value) for value in values)
    return before if before == after else f"{before} → {after}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else percent(value)


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"
