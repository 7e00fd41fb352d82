"""Goals: what an edit is wanted for, how much of it is enough, and what it may cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.evaluate import DIGITS
from salve_plugin.control.operators.base import real
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.integers import whole

By = Literal["any", "latents"]
RowChoice = Sequence[int] | Literal["rivals"] | None


@dataclass(frozen=True)
class SuppressClass:
    """Images of a class shall no longer be labelled as it.

    Attributes:
        label: the class, by index or name.
        max_accuracy: the class's accuracy that is low enough, in [0, 1).
        max_harm: the largest loss of accuracy of any other class that is allowed.
        keep: the classes that count as others; None means all.
        by: "any" edit; "latents" only, the paper's gates, for the sake of the features.
        rows: outputs that a gate changes: indices, None for all (the paper), "rivals" for the
            class's own and the few rivals' that are needed.
        tries: how many latents of the ranking to try first.
    """

    __repr__ = one_line

    label: int | str
    max_accuracy: float = 0.05
    max_harm: float = 0.01
    keep: tuple[int, ...] | None = None
    by: By = "any"
    rows: RowChoice = "rivals"
    tries: int = 5

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: names the one that is out of range.
        """
        _share(self, "max_accuracy", below_one=True)
        _share(self, "max_harm")
        # Of indices only the model knows whether it has so many outputs: that is checked with it.
        if isinstance(self.rows, str) and self.rows != "rivals":
            raise InputError(
                f"rows {self.rows!r} is unknown; give indices, None for all, or 'rivals'"
            )
        _by(self.by)
        whole(self.tries, "tries", least=1)

    @property
    def enough(self) -> float:
        """The share of the class's images that has to go elsewhere."""
        return round(1 - self.max_accuracy, DIGITS)


@dataclass(frozen=True)
class EnhanceClass:
    """Images of a class shall be labelled as it more often.

    Attributes:
        label: the class, by index or name.
        min_accuracy: the class's accuracy that is high enough, in (0, 1].
        max_harm: the largest loss of accuracy of any other class that is allowed.
        keep: the classes that count as others; None means all.
        by: "any" edit; "latents" only.
    """

    __repr__ = one_line

    label: int | str
    min_accuracy: float = 0.95
    max_harm: float = 0.01
    keep: tuple[int, ...] | None = None
    by: By = "any"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: names the one that is out of range.
        """
        _share(self, "min_accuracy")
        _share(self, "max_harm")
        _by(self.by)


@dataclass(frozen=True)
class MoveDecision:
    """Images of one class shall be labelled as another.

    Attributes:
        source: the class whose images move, by index or name.
        target: the class that they shall be labelled as.
        min_share: the share of its images that is enough, in (0, 1].
        max_harm: the largest loss of accuracy of any class but the source that is allowed.
        keep: the classes that count as others; None means all but the source.
    """

    __repr__ = one_line

    source: int | str
    target: int | str
    min_share: float = 0.95
    max_harm: float = 0.01
    keep: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: names the one that is out of range.
        """
        _share(self, "min_share")
        _share(self, "max_harm")


# Compared by identity: a concept holds tensors, whose == is no truth value.
@dataclass(frozen=True, eq=False)
class RemoveConcept:
    """The decisions shall no longer depend on a concept.

    Attributes:
        concept: found at the head's input, with `has`: which images have it.
        min_removed: the share of the dependence that is to go, in (0, 1]: of the flips where the
            concept's images are pairs, else of what the logits still tell of it within a class.
        max_harm: the largest loss of accuracy, balanced over classes with and without the concept.
        keep: classes whose own accuracy may not fall by more than `max_harm` either.
        rows: outputs that may change; None leaves the choice between all and the affected ones.
    """

    __repr__ = one_line

    concept: Concept
    min_removed: float = 0.7
    max_harm: float = 0.01
    keep: tuple[int, ...] = ()
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the numbers and the concept.

        Raises:
            InputError: names what cannot be used.
        """
        _share(self, "min_removed")
        _share(self, "max_harm")
        _concept(self.concept)


@dataclass(frozen=True, eq=False)
class RemoveShortcut:
    """The worst group (class, with or without the concept) shall be labelled better.

    Attributes:
        concept: the shortcut, found at the head's input. Where nobody has said which images have
            it, groups are taken from its score.
        min_gain: accuracy that the worst group is to gain, in (0, 1].
        max_harm: the largest loss of accuracy, balanced over groups.
        keep: classes whose own accuracy may not fall by more than `max_harm` either.
        rows: outputs that may change; None leaves the choice between all and the affected ones.
    """

    __repr__ = one_line

    concept: Concept
    min_gain: float = 0.1
    max_harm: float = 0.01
    keep: tuple[int, ...] = ()
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the numbers and the concept.

        Raises:
            InputError: names what cannot be used.
        """
        _share(self, "min_gain")
        _share(self, "max_harm")
        _concept(self.concept)


Goal = SuppressClass | EnhanceClass | MoveDecision | RemoveConcept | RemoveShortcut


def _share(goal: object, name: str, *, below_one: bool = False) -> None:
    """Check a share, and round it as the effects and harms that are compared with it."""
    number = real(getattr(goal, name), name)
    if not 0 <= number <= 1 or (below_one and number == 1):
        limit = " (less than 1)" * below_one
        raise InputError(f"{name} {number} is not a share from 0 to 1{limit}")
    object.__setattr__(goal, name, round(number, DIGITS))


def _by(by: object) -> None:
    if by not in get_args(By):
        raise InputError(f"by {by!r} is unknown; choose one of {list(get_args(By))}")


def _concept(concept: object) -> None:
    if not isinstance(concept, Concept):
        raise InputError(f"a concept was expected, got {type(concept).__name__}; see find_concept")
