"""The range test: which learning rate a short run does best with."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.learners.base import Learner, Step, Tensors
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training.loop import DivergedError, State, train
from salve_plugin.discover.training.plan import Plan

RATES = (5e-3, 1e-2, 2e-2)
"""Learning rates that the range test tries. The best of 400 steps was among them for nearly every
learner and data set tried; still lower rates only look better in short runs, because they spoil
less of the initial atoms. Where lower ones are better in the end, because a wide dictionary
overfits, short runs do not show it, on held-out rows either: benchmarks/range_test.py."""

RANGE_STEPS = (60, 100)
"""Fewest and most steps of a range test's short runs; in between, a quarter of the steps."""


def best_rate(
    rule: Learner,
    plan: Plan,
    prepared: Callable[[], Tensors],
    batches: Callable[[], Iterator[Tensor]],
    *,
    rows: Float[Tensor, "rows width"],
    team: Team,
    gradient: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Return the learning rate whose short run, decay included, ends with the lowest loss.

    Args:
        rule: the learner.
        plan: of the whole run.
        prepared: returns the tensors that training starts from, the same each time.
        batches: returns the batches from the first on.
        rows: scaled rows that the losses are compared on.
        team: the processes that share the batches.
        gradient: as for `train`.

    Raises:
        DivergedError: if every run diverges.
    """
    low, high = RANGE_STEPS
    # Without L0 control, which would let each run minimize a penalty of another weight than the one
    # that the losses below are compared with.
    plan = replace(plan, steps=min(max(low, plan.steps // 4), high, plan.steps), target_l0=None)
    losses = {}
    for rate in RATES:
        state = State.fresh(prepared(), plan, rate)
        try:
            for _ in train(rule, state, batches(), plan, team=team, gradient=gradient):
                pass
        # No failure: which rates are too high is what the test is to find out.
        except DivergedError:
            continue
        # One loss for all: penalties in full (progress 1), and nobody dead, since the auxiliary
        # loss of runs with different dead latents cannot be compared.
        step = Step(
            rows,
            torch.zeros(len(state.silent), dtype=torch.bool),
            progress=1.0,
            gradient=None if gradient is None else gradient(rows),
            team=team,
        )
        with torch.no_grad():
            loss = float(rule.loss(state.tensors, step).loss)
        if math.isfinite(loss):
            losses[rate] = loss
    if not losses:
        raise DivergedError(
            f"learner '{rule.name}' diverged at every learning rate of {RATES}; give a smaller "
            "learning_rate"
        )
    return min(losses, key=lambda rate: losses[rate])
