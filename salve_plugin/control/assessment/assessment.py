"""The assessment of an edit: one record, its table, and its verdict in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from salve_plugin.control.assessment.outcomes import (
    MOST_ALONE,
    Budget,
    ClassOutcome,
    ConceptOutcome,
    Control,
    Effect,
    Evidence,
    Prediction,
    Share,
)
from salve_plugin.control.assessment.tables import text_of
from salve_plugin.control.assessment.verdict import verdict
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import listed, shortened
from salve_plugin.store.record import Index, Record, Sha256

MAX_CLASSES = 10_000
"""Classes that an assessment lists at most; the file that it travels in is limited."""

ROUNDING = 1e-9
"""What a mean may be off by for the order in which it was summed."""


@dataclass(frozen=True, repr=False)
class Assessment(Record):
    """What an edit costs and achieves, beside the ideal and the controls.

    All numbers are of the same images, before and after the edit; means and sums are in float64.

    Attributes:
        accuracy: share of all images labelled rightly before the edit.
        budget: what the edit spends.
        classes: every class that has images or whose row was touched, by label.
        concept: what the concept did before the edit, where the edit is about one.
        controls: the same images with a control in the edit's place.
        edit: digest of the edit.
        effect: what the edit does.
        evidence: what is needed to measure again.
        images: number of images.
        predictions: how far a dictionary's codes predict what the edit does: of each of its
            latents and, if there are several, last of all together; for an edit of a hidden site to
            first order and on some of the images. Empty where the edit is of no latents, the
            dictionary was not there or is of another site, or the model cannot run in float64.
        reach: whether the edit changes the classifier alone, so that the features stay.
        target: the class that is to be suppressed; null if none is.
        target_before: its accuracy before the edit.
    """

    accuracy: Share
    budget: Budget
    classes: Annotated[tuple[ClassOutcome, ...], Meta(max_length=MAX_CLASSES)]
    concept: ConceptOutcome | None
    controls: Annotated[tuple[Control, ...], Meta(max_length=10)]
    edit: Sha256
    effect: Effect
    evidence: Evidence
    images: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    predictions: Annotated[tuple[Prediction, ...], Meta(max_length=MOST_ALONE + 1)]
    reach: Literal["head", "hidden"]
    target: Index | None
    target_before: Share | None

    def __post_init__(self) -> None:
        """Check that the parts are of one assessment.

        Raises:
            InputError: names the two that contradict each other.
        """
        labels = [outcome.label for outcome in self.classes]
        if labels != sorted(set(labels)) or len(labels) > MAX_CLASSES:
            raise InputError(
                f"an assessment lists at most {MAX_CLASSES} classes, each once, by label; got "
                f"{len(labels)}, the first {labels[:10]}"
            )
        if sum(outcome.count for outcome in self.classes) != self.images:
            raise InputError(f"the classes' images are not the {self.images} that were assessed")
        # What is said of a target or a concept stands in several fields: in all of them or in none.
        effects = [self.effect, *(control.effect for control in self.controls)]
        targets = [self.target, self.target_before]
        about = [(each.target, each.ideal) for each in effects]
        if len({part is None for pair in [targets, *about] for part in pair}) > 1:
            raise InputError(
                f"class {self.target} is to be suppressed, but accuracies and the distance to the "
                "ideal are not given for it alone, before and after"
            )
        concepts = [self.concept, *(each.concept for each in effects)]
        if len({part is None for part in concepts}) > 1:
            raise InputError("what a concept does is given before the edit or after it, not both")
        self._check_accuracies()
        self._check_predictions()
        if self.target is not None and self.outcome(self.target).accuracy != (
            self.target_before,
            self.effect.target,
        ):
            raise InputError(
                f"class {self.target} has the accuracies {self.outcome(self.target).accuracy}, as "
                f"the target {(self.target_before, self.effect.target)}"
            )

    def _check_predictions(self) -> None:
        """Raise unless predictions are of one edit and of the target."""
        named = [each.latents for each in self.predictions]
        together = named[-1] if named else ()
        alone = [(latent,) for latent in together] if len(together) <= MOST_ALONE else []
        # Of one latent, alone and together are the same, and it is said once.
        if named and named != (alone if len(together) == 1 else [*alone, together]):
            raise InputError(
                f"predictions are of each latent and last of all together; got {listed(named)}"
            )
        # A hidden edit reaches every logit.
        touched = self.target is not None and (
            self.reach == "hidden" or self.outcome(self.target).weights_changed > 0
        )
        if not touched and any(each.r2 is not None for each in self.predictions):
            raise InputError(
                f"the edit changes no logit of the target {self.target}, but predictions have an "
                "R² of it"
            )

    def _check_accuracies(self) -> None:
        """Raise unless what is said of all images follows from what is said of the classes."""
        seen = [(each.count, *each.accuracy) for each in self.classes if each.accuracy is not None]
        overall = (self.accuracy, self.effect.accuracy)
        # In what was `seen`, the count comes first, then the accuracies before and after.
        for moment, stated in enumerate(overall, 1):
            mean = sum(each[0] * each[moment] for each in seen) / self.images
            if abs(mean - stated) > ROUNDING:
                raise InputError(
                    f"the classes' accuracies have the mean {mean:.6g}, that of all images "
                    f"{stated:.6g}"
                )
        changes = [
            each.accuracy[1] - each.accuracy[0]
            for each in self.classes
            if each.accuracy is not None and each.label != self.target
        ]
        worst = min(changes, default=None)
        if (worst is None) != (self.effect.worst is None) or (
            worst is not None and abs(worst - (self.effect.worst or 0.0)) > ROUNDING
        ):
            raise InputError(
                f"the other classes' accuracies change by {worst} at worst, the effect says at "
                f"worst {self.effect.worst}"
            )

    def outcome(self, label: int) -> ClassOutcome:
        """Return what became of a class.

        Raises:
            InputError: if it has no images and its row was not touched.
        """
        for outcome in self.classes:
            if outcome.label == label:
                return outcome
        raise InputError(
            f"class {label} is not among the assessed ones, "
            f"{[outcome.label for outcome in self.classes][:20]}"
        )

    def control(self, name: str) -> Control:
        """Return what a control does.

        Raises:
            InputError: if it was not measured.
        """
        for control in self.controls:
            if control.name == name:
                return control
        raise InputError(
            f"no control '{name}' was measured; there are {[each.name for each in self.controls]}"
        )

    @property
    def verdict(self) -> str:
        """One sentence: what the edit does, what it costs, and whether a control does as well."""
        return verdict(self)

    @property
    def measures(self) -> dict[str, dict[str, float]]:
        """The few numbers for an overview, `{"before": {name: number}, "after": {...}}`."""
        before, after = {"accuracy": self.accuracy}, {"accuracy": self.effect.accuracy}
        if self.target_before is not None and self.effect.target is not None:
            before["target accuracy"] = self.target_before
            after["target accuracy"] = self.effect.target
            others = [
                each.accuracy for each in self.classes
                if each.accuracy is not None and each.label != self.target
            ]  # fmt: skip
            if others:
                before["others"] = sum(pair[0] for pair in others) / len(others)
                after["others"] = sum(pair[1] for pair in others) / len(others)
        if self.concept is not None and self.effect.concept is not None:
            before["worst group"] = self.concept.worst_group
            after["worst group"] = self.effect.concept.worst_group
        return {"before": before, "after": after}

    def __repr__(self) -> str:
        """Say in one line what was assessed and how it came out."""
        # The verdict is what matters, to its end, where a control may do better.
        return shortened(f"<Assessment: {self.verdict}>")

    def table(self, most: int = 12, names: Sequence[str] | None = None) -> str:
        """Return the classes (at most so many), the controls, budget and verdict as plain text.

        Args:
            most: classes to list.
            names: of all the model's classes, such as `Activations.classes`, for those without
                images that images go to.
        """
        return text_of(self, most, names)
