"""A sweep fits every combination and marks those that nothing beats."""

from pathlib import Path
from typing import Any

import pytest
import torch

from salve_plugin.discover import sweep as module
from salve_plugin.discover.sweep import Trial, sweep
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.progress import Progress
from salve_plugin.discover.training.run import Run
from salve_plugin.errors import InputError


def rows() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    on = torch.rand(600, 12, generator=random) < 0.2
    return on * torch.rand(600, 12, generator=random) @ torch.randn(12, 8, generator=random)


# Twenty steps are too few to reach a target.
@pytest.mark.filterwarnings("ignore:.*not target_l0")
def test_every_combination_is_fitted_as_fit_would() -> None:
    shared = {"n_latents": 12, "steps": 20, "learning_rate": 0.01, "target_l0": 3}
    trials = sweep(rows(), ["topk", "relu_l1"], {"seed": [0, 1]}, **shared)
    tried = sorted((trial.learner, trial.arguments["seed"]) for trial in trials)
    assert tried == [("relu_l1", 0), ("relu_l1", 1), ("topk", 0), ("topk", 1)]
    assert [trial.l0 for trial in trials] == sorted(trial.l0 for trial in trials)
    for trial in trials:
        alone = fit(rows(), trial.learner, **trial.arguments, **shared)  # type: ignore[arg-type] # plain arguments
        assert trial.dictionary.digest == alone.digest
        assert (trial.r2, trial.l0) == (alone.meta["held_out_r2"], alone.meta["l0"])


def test_how_it_is_carried_out_can_be_in_the_grid() -> None:
    runs = [Run(), Run(checkpoint_every=7)]
    trials = sweep(rows(), "topk", {"run": runs}, n_latents=12, k=3, steps=2, learning_rate=0.01)
    assert trials[0].dictionary.digest == trials[1].dictionary.digest


def test_more_active_latents_reconstruct_better_and_all_are_on_the_front() -> None:
    trials = sweep(rows(), "topk", {"k": [1, 3, 6]}, n_latents=12, steps=200, learning_rate=0.01)
    assert [trial.arguments["k"] for trial in trials] == [1, 3, 6]
    assert [trial.r2 for trial in trials] == sorted(trial.r2 for trial in trials)
    assert all(trial.front for trial in trials)
    assert str(trials[0]).startswith("* topk")
    assert "k=1" in str(trials[0])


def test_the_front_is_what_no_other_trial_beats() -> None:
    dictionary = fit(rows(), "l1", steps=1, learning_rate=0.01)
    numbers = [(0.5, 2.0), (0.9, 8.0), (0.4, 3.0), (0.9, 9.0), (0.5, 2.0)]
    trials = [Trial("l1", {}, dictionary, r2, l0, 0.0, 0.0) for r2, l0 in numbers]
    assert [trial.front for trial in module._marked(trials)] == [True, True, False, False, True]


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    grid, shared = {"seed": [0, 1]}, {"n_latents": 12, "k": 3, "steps": 20, "learning_rate": 0.01}
    seen: list[int] = []

    def interrupted(progress: Progress) -> None:
        seen.append(progress.step)
        if len(seen) == 30:  # in the second trial
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(rows(), "topk", grid, run=Run(tmp_path, 3, callback=interrupted), **shared)
    del seen[:]
    run = Run(tmp_path, 3, callback=lambda progress: seen.append(progress.step))
    trials = sweep(rows(), "topk", grid, run=run, **shared)
    assert seen == [*range(1, 21), *range(10, 21)]
    whole = sweep(rows(), "topk", grid, **shared)
    assert [each.dictionary.digest for each in trials] == [each.dictionary.digest for each in whole]


def test_a_trial_that_diverges_does_not_lose_the_others() -> None:
    shared = {"n_latents": 12, "steps": 20}
    with pytest.warns(UserWarning, match=r"no trial with .*1e\+30.*'relu_l1' diverged"):
        trials = sweep(rows(), "relu_l1", {"learning_rate": [1e30, 0.01]}, **shared)
    assert [trial.arguments for trial in trials] == [{"learning_rate": 0.01}]
    with pytest.warns(UserWarning, match="no trial"), pytest.raises(InputError, match="diverged"):
        sweep(rows(), "relu_l1", {"learning_rate": [1e30]}, **shared)


@pytest.mark.parametrize(
    ("learners", "grid", "complaint"),
    [
        (["topk"], {"k": [2, 400]}, "400"),
        (["topk", "topkk"], {"k": [2]}, "topkk"),
        (["topk"], {"k": [2], "n_latents": [12, 10**6]}, "too few for 1000000 latents"),
        (["topk"], {"initialization": ["rows", "raws"]}, "no initialization 'raws'"),
        (["topk", "l1"], {"k": [2]}, "k"),
        (["topk"], {"steps": [5, 0]}, "steps"),
        (["topk"], {"learning_rate": [0.01, -1.0]}, "learning_rate"),
        (["topk"], {"seed": [0, 2**50]}, "seed"),
        (["topk"], {"target_l0": [2, 500]}, "target_l0 = 500"),
    ],
)
def test_all_trials_are_checked_before_any_is_trained(
    learners: list[str], grid: dict[str, list[Any]], complaint: str
) -> None:
    trained: list[int] = []
    run = Run(callback=lambda progress: trained.append(progress.step))
    shared = {"n_latents": 12, "steps": 5, "learning_rate": 0.01}
    shared = {name: value for name, value in shared.items() if name not in grid}
    with pytest.raises(InputError, match=complaint):
        sweep(rows(), learners, grid, run=run, **shared)
    assert trained == []


def test_grids_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match=r"nothing to try for \['k'\]"):
        sweep(rows(), "topk", {"k": []})
    with pytest.raises(InputError, match=r"\['initialization'\] in the grid must be lists of val"):
        sweep(rows(), "topk", {"initialization": "rows"})
    with pytest.raises(InputError, match="nothing to try for learners"):
        sweep(rows(), [], {"k": [1]})
    with pytest.raises(InputError, match=r"\['seed'\] are in the grid and shared"):
        sweep(rows(), "topk", {"seed": [1]}, seed=2)
    with pytest.raises(InputError, match="held-out rows are too few"):
        sweep(rows()[:5], "l1", {"seed": [0]}, steps=1, learning_rate=0.01)
