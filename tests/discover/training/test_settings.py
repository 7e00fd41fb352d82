"""What a fit is asked for: checked at once, chosen where it is left open, and kept in the meta."""

import json
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.discover.learners import create
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.rows import Moments
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.settings import FitSettings
from salve_plugin.errors import InputError

ROWS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def moments(width: int, n_rows: int) -> Moments:
    return Moments(torch.zeros(width), 1.0, n_rows)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(1, 3000), st.integers(2, 10**6), st.sampled_from(["topk", "l1", "snmf"]),
    st.none() | st.integers(1, 2000), st.none() | st.integers(1, 500),
    st.none() | st.integers(1, 9000), st.none() | st.integers(1, 4096),
)  # fmt: skip
def test_what_is_asked_for_is_kept_and_the_rest_fits_the_data(
    width: int, n_rows: int, learner: str, latents: int | None, k: int | None,
    steps: int | None, batch: int | None,
) -> None:  # fmt: skip
    options = {"k": k} if k and learner == "topk" else {}
    asked = FitSettings(learner, options, latents, steps=steps, batch_size=batch)
    rule, data = asked.rule(), moments(width, n_rows)
    if latents is not None and latents > n_rows:
        with pytest.raises(InputError, match="training rows are too few"):
            asked.latents_of(rule, data)
        return
    n_latents = asked.latents_of(rule, data)
    assert n_latents == (latents or n_latents)
    assert 1 <= n_latents <= n_rows
    rule = asked.with_fitting_k(rule, n_latents, width)
    if learner == "topk":
        expected = options.get("k", min(32, max(1, min(n_latents, width) // 8)))
        assert rule == create("topk", {"k": expected})
    batch_size, n_steps = asked.batch_and_steps(n_rows)
    assert batch_size == (batch or (1024 if n_rows >= 16_384 else 256))
    if steps is None:  # four passes over the data, within bounds
        assert n_steps in (400, 10_000) or 0 <= n_steps * batch_size - 4 * n_rows < batch_size
    else:
        assert n_steps == steps

    chosen = asked.chosen(rule, n_latents=n_latents, batch_size=batch_size, steps=n_steps)
    assert chosen.options == asdict(rule)
    assert FitSettings.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert chosen.rule() == rule


def test_the_meta_of_a_dictionary_is_its_settings_and_the_outcome() -> None:
    dictionary = fit(ROWS, "topk", n_latents=8, k=2, steps=3, seed=5, target_l0=2)
    names = [field.name for field in fields(FitSettings)]
    kept = FitSettings.from_json({name: dictionary.meta[name] for name in names})
    assert (kept.learner, kept.n_latents, kept.steps, kept.seed) == ("topk", 8, 3, 5)
    assert kept.options == dictionary.options
    again = fit(
        ROWS, kept.learner, n_latents=kept.n_latents, seed=kept.seed, steps=kept.steps,
        batch_size=kept.batch_size, learning_rate=kept.learning_rate, **kept.options,
    )  # fmt: skip
    for name, tensor in dictionary.tensors.items():
        assert torch.equal(again.tensors[name], tensor)


def test_numbers_of_numpy_are_kept_as_plain_ones() -> None:
    """The learning rate and the options that somebody computed."""
    rate = np.float64(0.01)
    dictionary = fit(ROWS, "relu_l1", n_latents=8, steps=2, learning_rate=rate, l1=np.float64(0.1))
    assert dictionary.meta["learning_rate"] == 0.01
    assert type(dictionary.meta["learning_rate"]) is float
    assert type(FitSettings("l1", {}).chosen(
        create("l1", {"l1": np.float64(0.5)}), n_latents=1, batch_size=1, steps=1
    ).options["l1"]) is float  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seed": 2**40 + 1}, "seed must be a whole number between"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"target_l0": -1}, "target_l0 must be a finite number above 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number above 0"),
    ],
)
def test_settings_that_no_data_can_make_possible_are_refused_at_once(
    change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        FitSettings("topk", {}, **change)  # type: ignore[arg-type] # wrong on purpose


def test_a_target_or_kept_atoms_need_a_learner_that_can() -> None:
    with pytest.raises(InputError, match="'l1' has no sparsity that could be steered"):
        FitSettings("l1", {}, target_l0=3).rule()
    with pytest.raises(InputError, match="'itda' has nothing to learn but its atoms"):
        FitSettings("itda", {}, train_atoms=False).rule()
    with pytest.raises(InputError, match="target_l0 = 9 latents of a row cannot be active"):
        FitSettings("relu_l1", {}, 8, target_l0=9).latents_of(create("relu_l1", {}), moments(4, 99))


def test_checkpoints_are_a_whole_number_of_steps_apart() -> None:
    with pytest.raises(InputError, match="checkpoint_every must be a whole number of at least 1"):
        Run(checkpoint_every=0)
