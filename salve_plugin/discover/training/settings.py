"""What a fit is asked for, as one record: it is checked before any work, and `meta` begins with it.

What `None` leaves open depends on the learner and on the data, and is chosen once both are known.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from salve_plugin.discover.learners.base import Learner, Solver
from salve_plugin.discover.learners.checks import above, at_least_one, flag
from salve_plugin.discover.learners.registry import create
from salve_plugin.discover.training.rows import Moments
from salve_plugin.errors import InputError
from salve_plugin.store.record import Record

LARGEST_SEED = 2**40
"""Multiples of a seed seed the epochs and the steps: with this they still fit into 64 bits."""

ACTIVE = ("k", "initial_l0")
"""Options that say how many latents of a row are active."""

COUNTS = ("n_latents", "steps", "batch_size", "patience")

LARGE = 16_384
"""Training rows from which batches of 1024 leave enough steps in an epoch."""


@dataclass(frozen=True)
class FitSettings(Record):
    """The arguments of `fit` that determine its result, besides the data; see there.

    Attributes:
        learner: its name.
        options: its hyper-parameters: those given, and once the fit has begun all of them.
        n_latents: number of latents; ITDA may find fewer.
        seed: of the initial atoms and of the order of the rows.
        steps: optimizer steps; a dictionary's `meta` says how many were done.
        batch_size: rows in a step.
        learning_rate: its peak.
        initialization: of the atoms.
        target_l0: active latents of a row to reach.
        patience: reports without a gain after which the run ends early.
        train_atoms: whether the atoms are trained.
    """

    learner: str
    options: Mapping[str, Any]
    n_latents: int | None = None
    seed: int = 0
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    initialization: str = "rows"
    target_l0: float | int | None = None
    patience: int | None = None
    train_atoms: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked without learner and data.

        Raises:
            InputError: naming the first number that is impossible.
        """
        seed = self.seed
        if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) > LARGEST_SEED:
            raise InputError(
                f"seed must be a whole number between -{LARGEST_SEED} and {LARGEST_SEED}, got "
                f"{seed!r}"
            )
        counts = {name: getattr(self, name) for name in COUNTS}
        at_least_one(**{name: count for name, count in counts.items() if count is not None})
        if self.learning_rate is not None:
            above(0, learning_rate=self.learning_rate)
        if self.target_l0 is not None:
            above(0, target_l0=self.target_l0)
        flag(train_atoms=self.train_atoms)

    def rule(self) -> Learner:
        """Return the learner, with k set to the target L0 where that is how it reaches one.

        Raises:
            InputError: if there is no such learner or hyper-parameter, or it cannot do what is
                asked for: reach a target, or keep its atoms.
        """
        rule = create(self.learner, self.options)
        if isinstance(rule, Solver) and not self.train_atoms:
            raise InputError(
                f"learner '{rule.name}' has nothing to learn but its atoms, so that they cannot be "
                "kept; leave out train_atoms=False"
            )
        if self.target_l0 is None:
            return rule
        if rule.l0_control is None:
            raise InputError(
                f"learner '{rule.name}' has no sparsity that could be steered to target_l0 = "
                f"{self.target_l0}; leave it out, or choose another learner"
            )
        if rule.l0_control == "k":
            return replace(rule, **{"k": max(1, round(self.target_l0))})
        return rule

    def latents_of(self, rule: Learner, moments: Moments) -> int:
        """Return the number of latents for the data.

        Raises:
            InputError: if the training rows are fewer, or more latents of a row are to be active.
        """
        width, rows = len(moments.mean), moments.n_rows
        n_latents = self.n_latents or max(1, min(round(rule.expansion * width), rows // 2))
        if n_latents > rows:
            raise InputError(
                f"{rows} training rows are too few for {n_latents} latents: record more images, or "
                f"choose n_latents of at most {rows}"
            )
        if self.target_l0 is not None and self.target_l0 > n_latents:
            raise InputError(
                f"target_l0 = {self.target_l0:g} latents of a row cannot be active in a dictionary "
                f"of {n_latents}; choose a target of at most {n_latents}, or more latents"
            )
        return n_latents

    def with_fitting_k(self, rule: Learner, n_latents: int, width: int) -> Learner:
        """Return the learner with numbers of active latents that nobody asked for, lowered.

        At most an eighth of the latents, and of the width: half as many directions as a row has
        features reconstruct it almost whichever they are, so that nothing makes a learner find
        those that the rows are made of. (Zhu et al. 2025, AbsTopK, take a tenth of the width.)
        """
        most = max(1, min(n_latents, width) // 8)
        given = {*self.options, *(() if self.target_l0 is None else ("k",))}
        counts = {name: getattr(rule, name, None) for name in ACTIVE if name not in given}
        lowered = {name: most for name, n in counts.items() if isinstance(n, int) and n > most}
        return replace(rule, **lowered) if lowered else rule

    def batch_and_steps(self, n_rows: int) -> tuple[int, int]:
        """Return rows of a step and number of steps for so many training rows."""
        batch_size = self.batch_size or (1024 if n_rows >= LARGE else 256)
        steps = self.steps or min(max(400, math.ceil(4 * n_rows / batch_size)), 10_000)
        return batch_size, steps

    def chosen(
        self, rule: Learner, *, n_latents: int, batch_size: int, steps: int
    ) -> "FitSettings":
        """Return the settings that the run begins with: all options, and the numbers chosen.

        They are as a file would give them back (a NumPy float is none of JSON's), so that what the
        run is known by is the same whether or not it has been interrupted.
        """
        settings = replace(
            self, options=asdict(rule), learning_rate=self.learning_rate or rule.learning_rate,
            n_latents=n_latents, batch_size=batch_size, steps=steps,
        )  # fmt: skip
        return self.from_json(json.loads(json.dumps(asdict(settings))))


def check_number_type(work: str = "dictionaries are learned and measured") -> None:
    """Raise InputError unless torch computes in float32, in which that work is done."""
    if torch.get_default_dtype() != torch.float32:
        raise InputError(
            f"torch's default number type is {torch.get_default_dtype()}, and {work} in "
            "float32; call torch.set_default_dtype(torch.float32) before"
        )
