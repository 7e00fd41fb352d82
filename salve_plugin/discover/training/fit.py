"""Fit a dictionary to recorded activations: one way for all learners."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.kernels.precision import autocasts
from salve_plugin.discover.learners import create
from salve_plugin.discover.learners.base import Learner, Solver, Start, Tensors
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training import arguments as asked
from salve_plugin.discover.training import checkpoint
from salve_plugin.discover.training.folding import folded
from salve_plugin.discover.training.loop import SEED_STRIDE, Plan, State, train
from salve_plugin.discover.training.measures import quality_of, warn_of
from salve_plugin.discover.training.progress import bar, held_out_r2, progress_of
from salve_plugin.discover.training.rate import best_rate
from salve_plugin.discover.training.rows import Moments, Rows
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.start import start_of
from salve_plugin.discover.training.stopping import stop_if_still
from salve_plugin.errors import InputError, ReadError
from salve_plugin.site import Site

WATCHED_ROWS = 2048
"""Held-out rows on which a running fit measures R²."""

REPORTS = 50
"""How often a run reports, if anybody listens."""


def fit(
    acts: Activations | Tensor,
    learner: str = "mp",
    *,
    n_latents: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    initialization: str = "rows",
    target_l0: float | int | None = None,
    patience: int | None = None,
    train_atoms: bool = True,
    gradient: Callable[[Tensor], Tensor] | None = None,
    site: Site | None = None,
    run: Run | None = None,
    **options: Any,
) -> Dictionary:
    """Learn a dictionary of atoms from activations; the same seed gives the same dictionary.

    The rows are centred (not for the paper's `l1`) and divided by one scalar, the root of their
    mean squared distance from their mean; both are folded back: the dictionary takes raw rows. The
    encoder starts as the transpose of the atoms, which stay at unit norm. Adam follows a rate with
    warm-up and decay. One image in ten, spread evenly over the recording, is held out; `meta` says
    how well those are reconstructed.

    Args:
        acts: a recording, or rows in memory (rows, width), each then counting as an image.
        learner: its name; `salve_plugin.learners()` lists them. The default, matching pursuit,
            reconstructs best with as many active latents on the networks tried, has the fewest dead
            latents, and differs least between seeds; TopK is several times faster.
        n_latents: number of latents; by default four times the width (half of it for the paper's
            learner), at most half the training rows.
        seed: of the initial atoms and of the order of the rows.
        steps: optimizer steps; by default four passes over the data, but 400 to 10 000 steps.
        batch_size: rows in a step; by default 1024, or 256 if there are fewer than 16 384.
        learning_rate: its peak; by default the best of three in a range test of short runs.
        initialization: of the atoms: `rows`, `kmeans` (with a fixed seed) or `random`.
        target_l0: active latents of a row to reach: sets `k`, or steers the penalty's weight.
        patience: end early, by starting the decay of the rate, once R² on held-out rows has stood
            still for so many reports; there are fifty in a run. The first tenth of the steps, in
            which penalties warm up, does not count, nor does the time until a target L0 is near.
        train_atoms: False keeps the initial atoms and trains the encoder alone, as a control.
        gradient: from raw rows (rows, width) to the gradient of the model's loss with respect to
            them, for learners that select by it.
        site: what rows in memory are activations of; a recording knows.
        run: checkpoints, precision, progress, several processes.
        **options: the learner's hyper-parameters, e.g. `k=32`. Without it, k is the learner's
            default, but at most an eighth of the latents.

    Returns:
        The frozen dictionary. Its `meta` holds the arguments and `scale`, `held_out_r2`,
        `train_r2`, `l0` (mean number of active latents of a held-out row, see `l0_tolerance`),
        `dead_share` (latents that no training row activates) and where the data came from.

    Raises:
        InputError: if the learner or an option does not exist, a number is out of range, the
            activations are too few, constant, NaN or infinite, or training diverges.
        ReadError: if a shard or the checkpoint is missing or damaged.
        WriteError: if a checkpoint cannot be written.

    Warns:
        UserWarning: if the dictionary is dead or reconstructs worse than the mean row would, or
            its L0 is more than a quarter off the target.
    """
    run = run or Run()
    rule = asked.steered(create(learner, options), target_l0)
    data = Rows(acts, site)
    asked.check(
        rule, seed=seed, train_atoms=train_atoms, learning_rate=learning_rate, steps=steps,
        n_latents=n_latents, batch_size=batch_size, patience=patience,
        checkpoint_every=run.checkpoint_every,
    )  # fmt: skip
    moments = Moments.of(data) if rule.centred else Moments.of(data).unshifted()
    n_latents = n_latents or max(
        1, min(round(rule.expansion * data.site.width), moments.n_rows // 2)
    )
    if n_latents > moments.n_rows:
        raise InputError(
            f"{moments.n_rows} training rows are too few for {n_latents} latents: record more "
            f"images, or choose n_latents of at most {moments.n_rows}"
        )
    asked.check_target(target_l0, n_latents)
    if "k" not in options and target_l0 is None:
        rule = asked.with_fitting_k(rule, n_latents)
    batch_size = batch_size or (1024 if moments.n_rows >= 16_384 else 256)
    steps = steps or min(max(400, math.ceil(4 * moments.n_rows / batch_size)), 10_000)
    arguments: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate or rule.learning_rate,
        "initialization": initialization,
        "target_l0": target_l0,
        "patience": patience,
        "train_atoms": train_atoms,
        "options": asdict(rule),
    }
    with torch.inference_mode(False), torch.enable_grad():
        start = start_of(data, moments, rule, n_latents, initialization=initialization, seed=seed)
        work = _Work(rule, data, moments, start, arguments, run, gradient)
        tensors = work.solved() if isinstance(rule, Solver) else work.trained()
    dictionary = Dictionary(folded(rule, tensors, moments.shift, moments.scale), rule, data.site)
    quality = quality_of(dictionary, data, moments.scale)
    warn_of(quality, target_l0)
    arguments["options"] = dictionary.options
    dictionary.meta = {**arguments, "scale": moments.scale, **quality, **data.origin}
    return dictionary


class _Work:
    """One fit on its way: the data as the learner sees them, and how to run over them."""

    def __init__(
        self,
        rule: Learner,
        data: Rows,
        moments: Moments,
        start: Start,
        arguments: dict[str, Any],
        run: Run,
        gradient: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.rule, self.data, self.moments, self.start = rule, data, moments, start
        self.arguments, self.run = arguments, run
        self.gradient = None if gradient is None else self._scaled_gradient(gradient)
        self.team = Team(run.accelerator)
        fewest = min(arguments["batch_size"], moments.n_rows)
        if fewest < self.team.size:
            raise InputError(
                f"batches of {fewest} rows cannot be shared by {self.team.size} processes; choose "
                "a larger batch_size, or fewer processes"
            )
        self.plan = Plan(
            arguments["steps"],
            arguments["seed"],
            moments.n_rows,
            arguments["batch_size"],
            arguments["target_l0"] if rule.l0_control == "weight" else None,
            autocasts(run.precision),
        )

    def solved(self) -> Tensors:
        """Return what a learner without gradients finds."""
        assert isinstance(self.rule, Solver)
        size = self.arguments["batch_size"]
        self.arguments["steps"] = 0
        return self.rule.solve(
            self.start,
            lambda: map(
                self.moments.scaled,
                self.data.training(size, shuffle_seed=self.arguments["seed"] * SEED_STRIDE),
            ),
        )

    def trained(self) -> Tensors:
        """Return what the training loop finds; it goes on from a checkpoint if there is one."""
        state = State.fresh(self._prepared(), self.plan, self.arguments["learning_rate"] or 0.0)
        identity = self._identity()
        folder = None if self.run.checkpoint is None else Path(self.run.checkpoint)
        resumed = folder is not None and checkpoint.restore(folder, state, identity)
        self._check_together(state.step)
        if not resumed and not state.learning_rate:
            state.learning_rate = best_rate(
                self.rule, self.plan, self._prepared, self._batches,
                rows=self.start.rows[:WATCHED_ROWS], team=self.team, gradient=self.gradient,
            )  # fmt: skip
        apart = self.moments.scaled(self.data.apart(WATCHED_ROWS))
        every = max(1, self.plan.steps // REPORTS)
        watched = self.run.callback or self.run.progress or self.arguments["patience"]
        steps = train(
            self.rule, state, self._batches(state.step), self.plan,
            team=self.team, gradient=self.gradient,
        )  # fmt: skip
        with bar(self.run.progress and self.team.rank == 0) as show:
            for done in steps:
                if watched and (done.step % every == 0 or done.step == state.stop):
                    r2 = held_out_r2(self.rule, state.tensors, apart)
                    progress = progress_of(state, done, r2, self.plan.patience)
                    show(progress)
                    if self.run.callback and self.team.rank == 0:
                        self.run.callback(progress)
                    stop_if_still(state, r2, self.arguments["patience"], every)
                if folder and self.team.rank == 0 and done.step % self.run.checkpoint_every == 0:
                    checkpoint.store(folder, state, identity)
        if folder and self.team.rank == 0:
            checkpoint.discard(folder)
        self.arguments |= {"steps": state.step, "learning_rate": state.learning_rate}
        return self.rule.finished(state.tensors)

    def _check_together(self, step: int) -> None:
        """Raise ReadError unless all processes go on from the same step."""
        steps = self.team.gather(torch.tensor([step])).tolist()
        if len(set(steps)) > 1:
            raise ReadError(
                f"the processes would go on from steps {steps}: not all of them see the checkpoint "
                f"in {self.run.checkpoint}; name a folder that all machines share"
            )

    def _prepared(self) -> Tensors:
        """Return fresh tensors to train, the same each time."""
        random = torch.Generator().manual_seed(self.arguments["seed"])
        tensors = self.rule.prepare(replace(self.start, random=random))
        if not self.arguments["train_atoms"]:
            if not tensors["atoms"].requires_grad:
                raise InputError(
                    f"learner '{self.rule.name}' makes its atoms from other tensors, so that they "
                    "cannot be kept; leave out train_atoms=False"
                )
            tensors["atoms"] = tensors["atoms"].detach()
        return tensors

    def _batches(self, start: int = 0) -> Iterator[Tensor]:
        """Yield scaled batches for ever from step `start` on, in another order in each epoch."""
        size, seed = self.arguments["batch_size"], self.arguments["seed"]
        whole, rest = divmod(self.moments.n_rows, size)
        in_epoch = whole + (rest >= self.team.size)  # a smaller rest leaves a process without rows
        for epoch in count(start // in_epoch):
            rows = self.data.training(size, shuffle_seed=seed * SEED_STRIDE + epoch)
            skipped = start % in_epoch if epoch == start // in_epoch else 0
            yield from map(self.moments.scaled, islice(rows, skipped, in_epoch))

    def _identity(self) -> dict[str, Any]:
        """Return what determines the run, as plain JSON values."""
        return {
            **self.arguments,
            "learner": self.rule.name,
            "n_latents": self.start.n_latents,
            "processes": self.team.size,
            "precision": self.run.precision,
            "scale": self.moments.scale,
            "data": self.data.origin,
        }

    def _scaled_gradient(self, gradient: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        scale, shift = self.moments.scale, self.moments.shift

        def scaled(x: Tensor) -> Tensor:
            raw = gradient(scale * x + shift).detach().to(x.dtype)
            if raw.shape != x.shape:
                raise InputError(
                    f"gradient returned shape {tuple(raw.shape)} for rows of shape "
                    f"{tuple(x.shape)}; expected one gradient for each row"
                )
            return scale * raw

        return scaled
