"""Many small fits, and which of them nothing else beats."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.fit import fit, work_of
from salve_plugin.discover.training.loop import DivergedError
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.settings import FitSettings, check_number_type
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.faces.progress import bar
from salve_plugin.kinds import of_kind, several


@dataclass(frozen=True, eq=False)
class Trial:
    """One fit of a sweep.

    Attributes:
        learner: its name.
        arguments: what it was fitted with besides the arguments that all trials share.
        dictionary: the result.
        r2: on held-out rows.
        l0: active latents of a held-out row.
        dead_share: latents that no training row activates.
        seconds: processor time of the fit.
        front: whether no other trial has at least its R² at no more active latents.
    """

    __repr__ = one_line

    learner: str
    arguments: Mapping[str, Any]
    dictionary: Dictionary
    r2: float
    l0: float
    dead_share: float
    seconds: float
    front: bool = False

    def __str__(self) -> str:
        """Return the trial in one line; the front is starred."""
        arguments = " ".join(f"{name}={value}" for name, value in self.arguments.items())
        return (
            f"{'*' if self.front else ' '} {self.learner:<12} R² {self.r2:.4f}  L0 {self.l0:8.2f}  "
            f"dead {self.dead_share:6.1%}  {self.seconds:7.1f} s  {arguments}"
        )


def sweep(
    acts: Activations | Tensor,
    learners: str | Sequence[str],
    grid: Mapping[str, Sequence[Any]],
    **shared: Any,
) -> list[Trial]:
    """Fit every combination of a small grid; return the trials by L0, the front of R² marked.

    All of them are checked before any is trained.

    Args:
        acts: as for `fit`.
        learners: one learner or several.
        grid: values to try for each argument of `fit`, options of the learner included.
        **shared: arguments of `fit` that all trials share. With `run=Run(progress=True)` one bar
            counts the trials; with a checkpoint, each trial has its own below that folder.

    Raises:
        InputError: if the grid is empty or not of lists, an argument is in it and shared, the data
            have no held-out rows, all trials diverge, or as `fit` says.

    Warns:
        UserWarning: of each trial that diverges; the others are returned without it.
    """
    names = several(
        [learners] if isinstance(learners, str) else learners, "learners", "names of learners"
    )
    of_kind(grid, Mapping, "grid", "lists of values to try by the name of an argument")
    single = [
        name
        for name, values in grid.items()
        if isinstance(values, str) or not isinstance(values, Sequence)
    ]
    if single:
        raise InputError(
            f"{single} in the grid must be lists of values to try; give what all trials share as "
            "an argument of its own"
        )
    empty = [name for name, values in grid.items() if len(values) == 0]
    both = sorted(set(grid) & set(shared))
    if empty or both or not names:
        raise InputError(
            f"nothing to try for {empty or 'learners'}"
            if empty or not names
            else f"{both} are in the grid and shared by all trials; give each once"
        )
    combinations = [(name, arguments) for name in names for arguments in _combined(grid)]
    # Before any is trained: what is wrong with the last one would lose the others.
    for name, arguments in combinations:
        _check(acts, name, {**arguments, **shared})
    trials: list[Trial] = []
    diverged: DivergedError | None = None
    run = shared.get("run")
    shows = isinstance(run, Run) and run.progress
    with bar("trials", len(combinations), shows) as update:
        for index, (name, arguments) in enumerate(combinations):
            update(index, name)
            own = {"run": _of_trial(run, index)} if isinstance(run, Run) else {}
            try:
                trials.append(_trial(acts, name, arguments, {**shared, **own}))
            except DivergedError as error:
                warnings.warn(f"no trial with {arguments}: {error}", UserWarning, stacklevel=2)
                diverged = error
        update(len(combinations), f"{len(trials)} fitted")
    if diverged and not trials:
        raise diverged
    return sorted(_marked(trials), key=lambda trial: (trial.l0, -trial.r2))


def _combined(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _check(acts: Activations | Tensor, learner: str, arguments: Mapping[str, Any]) -> None:
    """Raise InputError if a trial cannot be fitted or its result not be compared."""
    check_number_type()
    settings = {field.name for field in fields(FitSettings)} - {"learner", "options"}
    of_fit = {"gradient", "site", "run"}
    options = {k: value for k, value in arguments.items() if k not in settings | of_fit}
    asked = FitSettings(
        learner, options, **{k: value for k, value in arguments.items() if k in settings}
    )
    with torch.inference_mode(False), torch.enable_grad():
        work = work_of(
            acts, asked, site=arguments.get("site"), run=arguments.get("run") or Run(),
            gradient=arguments.get("gradient"),
        )  # fmt: skip
        work.check()
    if len(work.data.apart(1)) == 0:
        raise InputError("0 held-out rows are too few to compare trials; record more images")


def _trial(
    acts: Activations | Tensor, learner: str, arguments: dict[str, Any], shared: Mapping[str, Any]
) -> Trial:
    # Not by the clock: what else the machine does must not count against a learner.
    before = process_time()
    dictionary = fit(acts, learner, **arguments, **shared)
    seconds = process_time() - before
    r2, l0, dead = (dictionary.meta[name] for name in ("held_out_r2", "l0", "dead_share"))
    if not isinstance(r2, float) or not isinstance(l0, float) or not isinstance(dead, float):
        raise InputError(
            f"{dictionary.meta['held_out_rows']} held-out rows are too few to compare trials; "
            "record more images"
        )
    return Trial(learner, arguments, dictionary, r2, l0, dead, seconds)


def _of_trial(run: Run, number: int) -> Run:
    """Return how one trial is carried out, given how all of them are."""
    # The checkpoint of one is no other's, and its bar would write over the one that counts them.
    folder = None if run.checkpoint is None else Path(run.checkpoint) / f"trial-{number:03d}"
    return replace(run, progress=False, checkpoint=folder)


def _marked(trials: list[Trial]) -> Iterator[Trial]:
    """Yield the trials, those marked that no other one beats or equals at lower cost."""
    for trial in trials:
        beaten = any(
            other.r2 >= trial.r2 and other.l0 <= trial.l0
            and (other.r2 > trial.r2 or other.l0 < trial.l0)
            for other in trials
        )  # fmt: skip
        yield Trial(**{**vars(trial), "front": not beaten})
