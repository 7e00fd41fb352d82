"""Dictionary learners, one file each, and the registry of those that exist."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from salve_plugin.discover.learners.base import Learner
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.errors import InputError

LEARNERS: dict[str, type[Learner]] = {}
"""Every learner by name; add to it with `register`."""


def register(learner: type[Learner]) -> type[Learner]:
    """Add a learner class under its name; usable as a decorator.

    Raises:
        InputError: if another learner has that name.
    """
    if LEARNERS.setdefault(learner.name, learner) is not learner:
        raise InputError(
            f"there is a learner '{learner.name}' already, {LEARNERS[learner.name].__qualname__}; "
            f"choose another name for {learner.__qualname__}"
        )
    return learner


def create(name: str, options: Mapping[str, Any]) -> Learner:
    """Return the learner of that name with its hyper-parameters set.

    Raises:
        InputError: if there is no such learner or hyper-parameter; those that exist are listed.
    """
    if name not in LEARNERS:
        raise InputError(f"no learner '{name}'; choose one of {sorted(LEARNERS)}")
    learner = LEARNERS[name]
    known = [field.name for field in fields(learner)]  # type: ignore[arg-type] # every learner is a dataclass
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"learner '{name}' has no options {unknown}; it has {known}")
    return learner(**options)


for _learner in (L1,):
    register(_learner)
