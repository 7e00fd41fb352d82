"""Measuring an assessment again, and whether it says the same."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from salve_plugin.control.assessment.assess import assess
from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.labels import n_outputs
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel
from salve_plugin.kinds import of_kind

TOLERANCE = 1e-6
"""How far a number may be off, relative to itself where it is beyond 1.

Recorded inputs of the classifier are float32, whose last bits depend on the size of batches.
"""


@dataclass(frozen=True)
class Deviation:
    """One value that came out otherwise.

    Attributes:
        field: its place in `Assessment.to_json`, such as `effect.ideal.runner_up`.
        stored: what the artifact says.
        measured: what was measured now.
    """

    __repr__ = one_line

    field: str
    stored: object
    measured: object

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return dict(vars(self))


def reassess(
    hooked: HookedModel,
    edit: Edit,
    stored: Assessment,
    loader: Iterable[Any],
    dictionary: Dictionary | None = None,
) -> Assessment:
    """Assess an edit again as it was assessed before: of what was recorded a recording is made.

    Args:
        hooked: the attached base model.
        edit: the edit.
        stored: what was measured before.
        loader: (images, labels) batches.
        dictionary: for the control along a random latent and for predictions; without it they are
            left out.

    Raises:
        InputError: if the assessment is about a concept, whose images a loader does not tell.
        SalveError: as `assess`.
    """
    of_kind(stored, Assessment, "stored", "an Assessment, such as an artifact's")
    if stored.concept is not None:
        raise InputError(
            "the assessment is about a concept: only with it is it known which images have it. "
            "Repeat it with assess(hooked, edit, data, has=..., counterparts=...)"
        )
    recorded = stored.evidence.recording is not None
    data = record(hooked, loader, progress=False) if recorded else loader
    return assess(
        hooked,
        edit,
        data,
        target=stored.target,
        dictionary=dictionary,
        classes=_names(hooked, stored),
        seed=stored.evidence.seed,
        command=stored.evidence.command,
    )


def _names(hooked: HookedModel, stored: Assessment) -> list[str]:
    """Return the names that the classes had, so that those of the new data do not count."""
    names = {each.label: each.name for each in stored.classes if each.name is not None}
    if not names:
        return []  # none, and not those of the new data, which None would ask for
    # Classes that were not listed are not compared: what they are called here does not matter.
    count = n_outputs(hooked) or max(names) + 1
    return [names.get(label, "") for label in range(count)]


def deviations(
    stored: Assessment, measured: Assessment, tolerance: float = TOLERANCE
) -> list[Deviation]:
    """Return every value of an assessment that another one does not confirm.

    The digest of the recorded inputs is not compared: they are floating-point numbers, and it is
    what follows from them that has to be the same. The control along a random latent, and what a
    dictionary predicts, are not compared where it was not there to measure them again.

    Args:
        stored: the one to confirm.
        measured: the one measured now.
        tolerance: see `TOLERANCE`.
    """
    for name, assessment in (("stored", stored), ("measured", measured)):
        of_kind(assessment, Assessment, name, "an Assessment")
    first, second = (_comparable(each) for each in (stored, measured))
    both = first["controls"].keys() & second["controls"].keys()
    if not (first["predictions"] and second["predictions"]):
        first["predictions"] = second["predictions"] = []
    for each in (first, second):
        each["controls"] = {
            name: control for name, control in each["controls"].items()
            if name in both or name != "random latent"
        }  # fmt: skip
    return list(_compared(first, second, "", tolerance))


def _comparable(assessment: Assessment) -> dict[str, Any]:
    fields = assessment.to_json()
    # How it was measured may differ, as a checkpoint is named or not; only what came out may not.
    fields["evidence"] = {
        name: value
        for name, value in fields["evidence"].items()
        if name not in ("command", "recording")
    }
    # By name and label, so that one that is missing does not shift all that follow.
    fields["controls"] = {each["name"]: each for each in fields["controls"]}
    fields["classes"] = {str(each["label"]): each for each in fields["classes"]}
    return fields


def _compared(first: Any, second: Any, path: str, tolerance: float) -> Iterator[Deviation]:
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted(first.keys() | second.keys()):
            place = f"{path}.{name}" if path else name
            yield from _compared(first.get(name), second.get(name), place, tolerance)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for at, pair in enumerate(zip(first, second, strict=True)):
            yield from _compared(*pair, f"{path}[{at}]", tolerance)
    elif not _same(first, second, tolerance):
        yield Deviation(path, first, second)


def _same(first: Any, second: Any, tolerance: float) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= tolerance * max(1.0, abs(first), abs(second))
    # True is 1 to Python, and a count of 1 no share of 1.0.
    return type(first) is type(second) and bool(first == second)
