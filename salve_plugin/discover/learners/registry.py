"""The registry of learners: which exist, and how one is made by name."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from salve_plugin.discover.learners.base import Learner
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.kinds import of_kind

L = TypeVar("L", bound=Learner)


@dataclass(frozen=True)
class LearnerInfo:
    """One line on a learner.

    Attributes:
        name: what `fit` calls it.
        summary: how it codes and learns.
        source: the publication.
        options: its hyper-parameters and their defaults.
    """

    __repr__ = one_line

    name: str
    summary: str
    source: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """Return name, summary and source in one line."""
        return f"{self.name:<16} {self.summary}  [{self.source}]"


LEARNERS: dict[str, type[Learner]] = {}
"""Every learner by name; add to it with `register`."""


def register(learner: type[L]) -> type[L]:
    """Add a learner class under its name; meant as a decorator of the class.

    The same class defined once more, as when the cell of a notebook is run again, takes its place.

    Raises:
        InputError: if it is no class of a learner, or another one has that name.
    """
    if not isinstance(learner, type) or not issubclass(learner, Learner):
        raise InputError(f"learner is {learner!r:.80}; expected a subclass of salve.Learner")
    known = LEARNERS.setdefault(learner.name, learner)
    if (known.__module__, known.__qualname__) != (learner.__module__, learner.__qualname__):
        raise InputError(
            f"there is a learner '{learner.name}' already, {known.__qualname__}; choose another "
            f"name for {learner.__qualname__}"
        )
    LEARNERS[learner.name] = learner
    return learner


def create(name: str, options: Mapping[str, Any]) -> Learner:
    """Return the learner of that name with its hyper-parameters set.

    Raises:
        InputError: if there is no such learner or hyper-parameter; those that exist are listed.
    """
    of_kind(name, str, "learner", f"one of {sorted(LEARNERS)}")
    if name not in LEARNERS:
        raise InputError(f"no learner '{name}'; choose one of {sorted(LEARNERS)}")
    learner = LEARNERS[name]
    known = [field.name for field in fields(learner)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"learner '{name}' has no options {unknown}; it has {known}")
    # JSON has lists where hyper-parameters are tuples.
    return learner(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})


class LearnerList(list[LearnerInfo], Tabular):
    """Learners, which print as a table."""

    def __repr__(self) -> str:
        """Return the names."""
        return f"<{len(self)} learners: {', '.join(info.name for info in self)}>"

    def as_table(self) -> Table:
        """Return name, summary and source of each."""
        rows = [(info.name, info.summary, info.source) for info in self]
        return Table("", ("learner", "how it codes and learns", "source"), rows, most=len(rows))


def learners() -> LearnerList:
    """List every learner that `fit` knows, by name, with its options and where it is from.

    Those whose source starts with "after" are reconstructed from an abstract.
    """
    return LearnerList(
        LearnerInfo(
            name,
            learner.summary,
            learner.source,
            {field.name: field.default for field in fields(learner)},
        )
        for name, learner in sorted(LEARNERS.items())
    )
