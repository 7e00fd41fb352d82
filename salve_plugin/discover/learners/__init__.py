"""Dictionary learners, one file each, and the registry of those that exist."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from salve_plugin.discover.learners.abs_topk import AbsTopK
from salve_plugin.discover.learners.archetypal import Archetypal
from salve_plugin.discover.learners.base import Learner
from salve_plugin.discover.learners.batch_topk import BatchTopK
from salve_plugin.discover.learners.feature_choice import FeatureChoice, MutualChoice
from salve_plugin.discover.learners.gated import Gated
from salve_plugin.discover.learners.gba import GBA
from salve_plugin.discover.learners.gradient import GradientTopK
from salve_plugin.discover.learners.itda import Itda
from salve_plugin.discover.learners.jumprelu import JumpReLU
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.discover.learners.matching_pursuit import MatchingPursuit
from salve_plugin.discover.learners.matryoshka import Matryoshka
from salve_plugin.discover.learners.poly import Poly
from salve_plugin.discover.learners.relu_l1 import ReluL1
from salve_plugin.discover.learners.snmf import Snmf
from salve_plugin.discover.learners.top_afa import TopAFA
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.learners.variational import Variational
from salve_plugin.discover.learners.vl import VL
from salve_plugin.errors import InputError


@dataclass(frozen=True)
class LearnerInfo:
    """One line on a learner.

    Attributes:
        name: what `fit` calls it.
        summary: how it codes and learns.
        source: the publication.
        options: its hyper-parameters and their defaults.
    """

    name: str
    summary: str
    source: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """Return name, summary and source in one line."""
        return f"{self.name:<16} {self.summary}  [{self.source}]"


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
    # JSON has lists where hyper-parameters are tuples.
    return learner(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})


def learners() -> list[LearnerInfo]:
    """List every learner that `fit` knows, by name, with its options and where it is from.

    Those whose source starts with "after" are reconstructed from an abstract.
    """
    return [
        LearnerInfo(
            name,
            learner.summary,
            learner.source,
            {field.name: field.default for field in fields(learner)},  # type: ignore[arg-type] # every learner is a dataclass
        )
        for name, learner in sorted(LEARNERS.items())
    ]


for _learner in (
    L1,
    ReluL1,
    TopK,
    BatchTopK,
    AbsTopK,
    JumpReLU,
    Gated,
    Matryoshka,
    Archetypal,
    MatchingPursuit,
    GradientTopK,
    FeatureChoice,
    MutualChoice,
    Itda,
    Snmf,
    TopAFA,
    GBA,
    VL,
    Poly,
    Variational,
):
    register(_learner)
