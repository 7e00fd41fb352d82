"""Controls: what each is, that it is a dictionary like others, and how it reconstructs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.rows import held_out
from salve_plugin.errors import InputError
from salve_plugin.validate.baselines import CONTROLS, control, principal_axes
from salve_plugin.validate.reconstruction import fvu

K, WIDTH = 3, 12


@pytest.fixture
def planted(make_planted: Callable[..., Any]) -> Any:
    return make_planted()


@pytest.fixture
def recorded(make_recorded: Callable[..., Any], planted: Any) -> Any:
    return make_recorded(planted.x, planted.labels)


@pytest.fixture
def dictionary(recorded: Any) -> Dictionary:
    return fit(recorded.acts, "topk", k=K, n_latents=16, steps=30, learning_rate=0.02)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_a_dictionary_of_the_same_site_and_the_same_each_time(
    name: str, recorded: Any, dictionary: Dictionary, planted: Any
) -> None:
    one, again = (control(name, recorded.acts, dictionary, k=K, steps=20) for _ in range(2))
    assert one.digest == again.digest
    assert one.site == dictionary.site
    assert one.n_latents == (16 if name in ("random", "frozen", "kmeans") else 12)
    assert one.meta["control"] == name
    other = control(name, recorded.acts, dictionary, k=K, seed=1, steps=20)
    random = name in ("random", "frozen", "kmeans")
    assert torch.equal(one.atoms, other.atoms) != random
    codes = one.encode(planted.x)
    active = (codes != 0).sum(1)
    assert int(active.max()) == (K if name not in ("pca", "neurons") else 12)


def test_linear_controls_reconstruct_exactly_and_neurons_are_the_activations(
    recorded: Any, dictionary: Dictionary, planted: Any
) -> None:
    neurons = control("neurons", recorded.acts, dictionary, k=K)
    assert torch.equal(neurons.encode(planted.x), planted.x)
    pca = control("pca", recorded.acts, dictionary, k=K)
    torch.testing.assert_close(pca(planted.x), planted.x, rtol=1e-4, atol=1e-4)
    training = planted.x[~held_out(torch.arange(600))]
    torch.testing.assert_close(pca.encode(training).mean(0), torch.zeros(12), rtol=1e-4, atol=1e-4)


def test_principal_axes_are_those_of_the_singular_value_decomposition(planted: Any) -> None:
    rows = planted.x.double().numpy()
    expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2]
    found = principal_axes(planted.x).double().numpy()
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), 1, atol=1e-5)


def test_a_smaller_pca_keeps_the_first_axes(recorded: Any, planted: Any) -> None:
    small = fit(recorded.acts, "topk", k=2, n_latents=4, steps=5, learning_rate=0.01)
    pca = control("pca", recorded.acts, small, k=2)
    assert pca.n_latents == 4
    training = planted.x[~held_out(torch.arange(600))]
    axes = torch.from_numpy(
        np.linalg.svd((training - training.mean(0)).numpy(), full_matrices=False)[2][:4]
    )
    projected = (training - training.mean(0)) @ axes.T @ axes + training.mean(0)
    torch.testing.assert_close(pca(training), projected, rtol=1e-3, atol=1e-3)


def test_the_gain_of_tied_encoders_is_the_best_one(
    recorded: Any, dictionary: Dictionary, planted: Any
) -> None:
    rows = planted.x[~held_out(torch.arange(600))]
    for name in ("random", "kmeans"):
        found = control(name, recorded.acts, dictionary, k=K)
        mean, back = found.decoder_bias, found(rows) - found.decoder_bias
        errors = [fvu(rows, rows - mean - gain * back) for gain in (0.9, 1.0, 1.1)]
        assert errors[1] == min(errors)
        cosine = torch.cosine_similarity(found.encoder_weight, found.atoms, dim=1)
        torch.testing.assert_close(cosine, torch.ones(16))


def test_training_more_of_it_reconstructs_better(recorded: Any, planted: Any) -> None:
    """Random atoms, then their encoder trained, then the atoms too."""
    dictionary = fit(recorded.acts, "topk", k=K, n_latents=16, steps=200, learning_rate=0.02)
    some = held_out(torch.arange(600))
    chain = [
        control("random", recorded.acts, dictionary, k=K),
        control("frozen", recorded.acts, dictionary, k=K),
        dictionary,
    ]
    errors = [fvu(planted.x[some], planted.x[some] - each(planted.x[some])) for each in chain]
    assert errors == sorted(errors, reverse=True)


def test_atoms_planted_with_the_same_seed_are_not_drawn_again(
    recorded: Any, dictionary: Dictionary
) -> None:
    drawn = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0))
    for name in ("random", "frozen"):
        found = control(name, recorded.acts, dictionary, k=K, steps=1)
        assert float(torch.cosine_similarity(found.atoms, drawn, dim=1).max()) < 0.99


def test_frozen_keeps_its_atoms_and_trains_as_long_as_the_dictionary(
    recorded: Any, dictionary: Dictionary
) -> None:
    found = control("frozen", recorded.acts, dictionary, k=K)
    brief = control("frozen", recorded.acts, dictionary, k=K, steps=1)
    assert found.meta["steps"] == dictionary.meta["steps"]
    assert torch.equal(found.atoms, brief.atoms)
    assert not torch.equal(found.encoder_weight, brief.encoder_weight)


def test_a_dictionary_that_took_no_steps_has_a_frozen_control_too(recorded: Any) -> None:
    dictionary = fit(recorded.acts, "itda", n_latents=8)
    assert dictionary.meta["steps"] == 0
    assert control("frozen", recorded.acts, dictionary, k=1).n_latents == dictionary.n_latents


def test_controls_never_see_held_out_images(
    make_recorded: Callable[..., Any], planted: Any, dictionary: Dictionary
) -> None:
    changed = planted.x.clone()
    changed[held_out(torch.arange(600))] = 100
    acts = make_recorded(changed, planted.labels).acts
    honest = make_recorded(planted.x, planted.labels).acts
    for name in ("random", "pca", "kmeans"):
        pair = [control(name, each, dictionary, k=K).digest for each in (acts, honest)]
        assert pair[0] == pair[1]


def test_what_cannot_be_made_is_refused(
    recorded: Any, dictionary: Dictionary, make_recorded: Callable[..., Any], planted: Any
) -> None:
    with pytest.raises(InputError, match="no control 'nmf'; choose from"):
        control("nmf", recorded.acts, dictionary, k=K)
    for k in (0, 17):
        with pytest.raises(InputError, match=f"k={k} must be from 1 to the number of latents, 16"):
            control("random", recorded.acts, dictionary, k=k)
    tokens = make_recorded(planted.x[:, None].repeat(1, 2, 1), planted.labels)
    with pytest.raises(InputError, match=r"reads site 'unembed.hook_in'.*of 'body.hook_out'"):
        control("pca", tokens.acts, dictionary, k=K)
    few = make_recorded(planted.x[:12], planted.labels[:12]).acts
    with pytest.raises(InputError, match="too few for 16"):
        control("kmeans", few, dictionary, k=K)
