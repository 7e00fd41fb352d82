"""Fit a dictionary to recorded activations: one way for all learners."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.kernels.precision import autocasts
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.folding import folded
from salve_plugin.discover.training.measures import quality_of, warn_of
from salve_plugin.discover.training.plan import Plan
from salve_plugin.discover.training.rows import Moments, RowReader
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.settings import FitSettings, check_number_type
from salve_plugin.discover.training.start import start_of
from salve_plugin.discover.training.work import Work
from salve_plugin.errors import InputError
from salve_plugin.kinds import of_kind
from salve_plugin.modes import without_autocast
from salve_plugin.site import Site


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

    The rows are centred and divided by one scalar, the root of their mean squared distance from
    their mean; both are folded back, exactly: the dictionary takes raw rows. The encoder starts as
    the transpose of the atoms, which stay at unit norm. Adam follows a rate with warm-up and decay.
    One image in ten, spread evenly over the recording, is held out; `meta` says how well those are
    reconstructed.

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
            default, but at most an eighth of the latents and of the width.

    Returns:
        The frozen dictionary. Its `meta` holds the arguments and `scale`, `held_out_r2`,
        `train_r2`, `l0` (mean number of active latents of a held-out row, see `l0_tolerance`),
        `dead_share` (latents that no training row activates) and where the data came from.

    Raises:
        InputError: if the learner or an option does not exist, a number is out of range, the
            activations are too few, constant, NaN or infinite, or training diverges.
        ReadError: if a shard or the checkpoint is missing or damaged.
        FolderInUseError: if another fit keeps its checkpoint in the same folder.
        WriteError: if a checkpoint cannot be written.

    Warns:
        UserWarning: if a fifth of the latents or more are dead, the dictionary reconstructs worse
            than the mean row would, held-out R² is more than 0.1 below that of training, or its L0
            is more than a quarter off the target.

    Example:
        >>> sae = fit(acts, "topk", n_latents=512, k=16, run=Run(progress=True))  # doctest: +SKIP
    """
    check_number_type()
    run = run or Run()
    asked = FitSettings(
        learner, options, n_latents, seed, steps, batch_size, learning_rate, initialization,
        target_l0, patience, train_atoms,
    )  # fmt: skip
    # The caller may be inside any of these modes. Tensors made in inference mode can never be
    # trained, and autocast would compute in bfloat16 what `precision` does not ask for.
    with torch.inference_mode(False), torch.enable_grad(), without_autocast():
        work = work_of(acts, asked, site=site, run=run, gradient=gradient)
        tensors, numbers = work.done()
    data, moments = work.data, work.moments
    folded_tensors = folded(work.rule, tensors, moments.mean, moments.scale)
    dictionary = Dictionary(folded_tensors, work.rule, data.site)
    with without_autocast():
        # Measured after folding, on raw rows: the numbers are those of the very tensors returned.
        quality = quality_of(dictionary, data, moments.scale)
    warn_of(quality, target_l0)
    numbers |= {"scale": moments.scale, **quality, **data.origin}
    dictionary.meta = {**work.settings.to_json(), **numbers}
    return dictionary


def work_of(
    acts: Activations | Tensor,
    asked: FitSettings,
    *,
    site: Site | None = None,
    run: Run,
    gradient: Callable[[Tensor], Tensor] | None = None,
) -> Work:
    """Return a fit that has everything but its training: what is wrong with it shows here.

    Raises:
        SalveError: as `fit`, but for what only training can show.
    """
    rule = asked.rule()
    of_kind(run, Run, "run", "a salve.Run")
    if gradient is not None and not callable(gradient):
        raise InputError(f"gradient is {gradient!r:.80}; expected a function of rows")
    data = RowReader(acts, site)
    moments = Moments.of(data)
    n_latents = asked.latents_of(rule, moments)
    rule = asked.with_fitting_k(rule, n_latents, data.site.width)
    batch_size, steps = asked.batch_and_steps(moments.n_rows)
    settings = asked.chosen(rule, n_latents=n_latents, batch_size=batch_size, steps=steps)
    plan = Plan(
        steps, asked.seed, moments.n_rows, batch_size,
        # A learner with `k` has reached the target already, by the k that `FitSettings.rule` gave
        # it.
        target_l0=asked.target_l0 if rule.l0_control == "weight" else None,
        autocast=autocasts(run.precision),
    )  # fmt: skip
    start = start_of(
        data, moments, rule, n_latents, initialization=asked.initialization, seed=asked.seed
    )
    return Work(rule, data, moments, start, settings, plan, run, gradient)
