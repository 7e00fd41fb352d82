"""One fit on its way: it reads the rows as its learner sees them, and runs over them."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salve_plugin.discover.learners.base import Learner, Solver, Start, Tensors
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training import checkpoint
from salve_plugin.discover.training.loop import SEED_STRIDE, State, train
from salve_plugin.discover.training.plan import Plan
from salve_plugin.discover.training.progress import held_out_r2, numbers_of, progress_of
from salve_plugin.discover.training.rate import best_rate
from salve_plugin.discover.training.rows import Moments, RowReader
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.settings import FitSettings
from salve_plugin.discover.training.stopping import stop_if_still
from salve_plugin.errors import InputError, ReadError
from salve_plugin.faces.progress import bar
from salve_plugin.store.lock import locked

WATCHED_ROWS = 2048
"""Held-out rows on which a running fit measures R²."""

REPORTS = 50
"""How often a run reports, if anybody listens."""


@dataclass(frozen=True, eq=False)
class Work:
    """One fit on its way.

    Attributes:
        rule: the learner.
        data: the rows.
        moments: what scales them.
        start: where training starts from.
        settings: what is asked for, nothing left open but perhaps the learning rate.
        plan: of the run.
        run: how it is carried out.
        raw_gradient: from raw rows to the gradient of the model's loss, if anybody gave one.
    """

    rule: Learner
    data: RowReader
    moments: Moments
    start: Start
    settings: FitSettings
    plan: Plan
    run: Run
    raw_gradient: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that every process gets rows of every batch.

        Raises:
            InputError: if the batches are too small for that.
        """
        rows = min(self.plan.batch_size, self.moments.n_rows)
        if rows < self.team.size:
            raise InputError(
                f"batches of {rows} rows cannot be shared by {self.team.size} processes; choose "
                "a larger batch_size, or fewer processes"
            )

    @cached_property
    def team(self) -> Team:
        """The processes that share each batch."""
        return Team(self.run.accelerator)

    @property
    def _folder(self) -> Path | None:
        """Where the run keeps its checkpoint."""
        return None if self.run.checkpoint is None else Path(self.run.checkpoint)

    @cached_property
    def gradient(self) -> Callable[[Tensor], Tensor] | None:
        """From scaled rows to the gradient of the model's loss with respect to them."""
        return None if self.raw_gradient is None else self._scaled(self.raw_gradient)

    def check(self) -> None:
        """Try what the run begins with.

        Raises:
            InputError: if the learner cannot start from these rows with these settings.
        """
        if not isinstance(self.rule, Solver):
            self._prepared()

    def done(self) -> tuple[Tensors, dict[str, Any]]:
        """Return the tensors found, and what is known only now: the steps, the learning rate."""
        if isinstance(self.rule, Solver):
            return self._solved(self.rule)
        # Another run would write its checkpoint over this one's, and remove it when it ends.
        with locked(self._folder) if self._folder and self.team.rank == 0 else nullcontext():
            return self._trained()

    def _solved(self, rule: Solver) -> tuple[Tensors, dict[str, Any]]:
        """Let a learner without gradients read the rows."""

        def batches() -> Iterator[Tensor]:
            order = self.plan.seed * SEED_STRIDE
            rows = self.data.training(self.plan.batch_size, shuffle_seed=order)
            return map(self.moments.scaled, rows)

        return rule.solve(self.start, batches), {"steps": 0}

    def _trained(self) -> tuple[Tensors, dict[str, Any]]:
        """Run the training loop; it goes on from a checkpoint if there is one."""
        state = State.fresh(self._prepared(), self.plan, self.settings.learning_rate or 0.0)
        identity, folder = self._identity(), self._folder
        # A restored state has the learning rate that the first start's range test found.
        resumed = folder is not None and checkpoint.restore(folder, state, identity)
        self._check_together(state.step)
        if not resumed and not state.learning_rate:
            state.learning_rate = best_rate(
                self.rule, self.plan, self._prepared, self._batches,
                # On training rows: those held out are to judge the result and have no part in a
                # choice.
                rows=self.start.rows[:WATCHED_ROWS], team=self.team, gradient=self.gradient,
            )  # fmt: skip
        apart = self.moments.scaled(self.data.apart(WATCHED_ROWS))
        every = max(1, self.plan.steps // REPORTS)
        watched = self.run.callback or self.run.progress or self.settings.patience
        steps = train(
            self.rule, state, self._batches(state.step), self.plan,
            team=self.team, gradient=self.gradient,
        )  # fmt: skip
        with bar("fitting steps", state.stop, self.run.progress and self.team.rank == 0) as show:
            for done in steps:
                if watched and (done.step % every == 0 or done.step == state.stop):
                    r2 = held_out_r2(self.rule, state.tensors, apart)
                    progress = progress_of(state, done, r2, self.plan.patience)
                    show(progress.step, numbers_of(progress), total=progress.steps)
                    if self.run.callback and self.team.rank == 0:
                        self.run.callback(progress)
                    stop_if_still(state, r2, self.settings.patience, every)
                # After the report, which may have moved the end of the run: a resumed run has to
                # know of it.
                if folder and self.team.rank == 0 and done.step % self.run.checkpoint_every == 0:
                    checkpoint.store(folder, state, identity)
        if folder and self.team.rank == 0:
            checkpoint.discard(folder)
        numbers = {"steps": state.step, "learning_rate": state.learning_rate}
        return self.rule.finished(state.tensors), numbers

    def _check_together(self, step: int) -> None:
        """Raise ReadError unless all processes go on from the same step."""
        steps = self.team.gather(torch.tensor([step], device=self.team.device)).tolist()
        if len(set(steps)) > 1:
            raise ReadError(
                f"the processes would go on from steps {steps}: not all of them see the checkpoint "
                f"in {self.run.checkpoint}; name a folder that all machines share"
            )

    def _prepared(self) -> Tensors:
        """Return fresh tensors to train, the same each time."""
        random = torch.Generator().manual_seed(self.plan.seed)
        tensors = self.rule.prepare(replace(self.start, random=random))
        if not self.settings.train_atoms:
            if not tensors["atoms"].requires_grad:
                raise InputError(
                    f"learner '{self.rule.name}' makes its atoms from other tensors, so that they "
                    "cannot be kept; leave out train_atoms=False"
                )
            tensors["atoms"] = tensors["atoms"].detach()
        return tensors

    def _batches(self, start: int = 0) -> Iterator[Tensor]:
        """Yield scaled batches for ever from step `start` on, in another order in each epoch."""
        size, seed = self.plan.batch_size, self.plan.seed
        whole, rest = divmod(self.moments.n_rows, size)
        in_epoch = whole + (rest >= self.team.size)  # a smaller rest leaves a process without rows
        # An epoch's order does not depend on those before it: to go on from a step, only the rows
        # before it in its own epoch are drawn again and skipped.
        for epoch in count(start // in_epoch):
            rows = self.data.training(size, shuffle_seed=seed * SEED_STRIDE + epoch)
            skipped = start % in_epoch if epoch == start // in_epoch else 0
            yield from map(self.moments.scaled, islice(rows, skipped, in_epoch))

    def _identity(self) -> dict[str, Any]:
        """Return what determines the run, as plain JSON values."""
        # Of a sample: the scale is of all rows, but that of -x, say, is that of x.
        rows = hashlib.sha256(self.start.rows.contiguous().numpy().tobytes())
        return {
            **self.settings.to_json(),
            # What else numbers depend on: sums of other parts, and products of another precision,
            # round differently.
            "processes": self.team.size,
            "precision": self.run.precision,
            "scale": self.moments.scale,
            "rows": rows.hexdigest(),
            "data": self.data.origin,
        }

    def _scaled(self, gradient: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        scale, mean = self.moments.scale, self.moments.mean

        def scaled(x: Tensor) -> Tensor:
            raw = gradient(scale * x + mean).detach().to(x.dtype)
            if raw.shape != x.shape:
                raise InputError(
                    f"gradient returned shape {tuple(raw.shape)} for rows of shape "
                    f"{tuple(x.shape)}; expected one gradient for each row"
                )
            # With x = s x' + m, the gradient in x' is s times that in x.
            return scale * raw

        return scaled
