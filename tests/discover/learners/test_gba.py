"""GBA: a control rule sets the biases; gradients learn the rest."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.gba import GBA, moved
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError

ROWS, WIDTH, LATENTS = 16, 6, 10


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepared(learner: GBA) -> Tensors:
    """Tensors as after some training: scales differ, biases and b_d are not zero."""
    atoms = functional.normalize(randn(LATENTS, WIDTH), dim=1)
    t = learner.prepare(Start(randn(40, WIDTH, seed=1), atoms, 0.8, torch.Generator()))
    with torch.no_grad():
        t["scale"] *= 1 + 0.3 * torch.rand(LATENTS, generator=torch.Generator().manual_seed(2))
        t["decoder_bias"] += 0.1 * randn(WIDTH, seed=3)
        t["bias"] -= 0.1 * randn(LATENTS, seed=4).abs()
        learner.constrain(t)
    return t


def step(seed: int = 5) -> Step:
    x = randn(ROWS, WIDTH, seed=seed) / WIDTH**0.5
    return Step(x, torch.zeros(LATENTS, dtype=torch.bool))


def test_the_rule_moves_each_bias_as_its_definition_says() -> None:
    bias = torch.tensor([-0.5, -0.5, -0.5, -0.01, 0.0, -0.3])
    activity = torch.tensor([0.2, 0.1, 0.0, 0.0, 0.3, 0.0])
    peak = torch.tensor([0.4, 0.6, 0.0, 0.0, 1.0, 0.2])
    targets = torch.tensor([0.1, 0.1, 0.1, 0.05, 0.05, 0.05])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    expected = [
        -0.5 - 0.1 * 0.4,  # too active: falls by its own peak
        -0.5,  # just at its target: stays
        -0.5 + 0.1 * 0.5,  # silent: rises by the mean of .4 and .6
        0.0,  # would rise by the mean of 1 and .2, but not above 0
        0.0 - 0.1 * 1.0,
        -0.3 + 0.1 * 0.6,  # silent by count: rises, its own peak counts for the mean
    ]
    found = moved(bias, activity, peak, targets, group, 0.1)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_group_that_is_silent_as_a_whole_stays() -> None:
    zero = torch.zeros(3)
    found = moved(zero - 0.5, zero, zero, zero + 0.1, torch.zeros(3, dtype=torch.long), 0.1)
    torch.testing.assert_close(found, zero - 0.5)


def test_targets_fall_geometrically_from_group_to_group() -> None:
    targets = GBA(groups=3, highest=0.1, lowest=0.001).targets(7)
    expected = [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    torch.testing.assert_close(targets, torch.tensor(expected))
    torch.testing.assert_close(GBA(groups=1, highest=0.05).targets(2), torch.full((2,), 0.05))


def test_the_loss_and_its_gradients_are_those_of_the_dense_formula() -> None:
    learner = GBA()
    t, now = prepared(learner), step()
    outcome = learner.loss(t, now)
    leaves = ("atoms", "decoder_bias", "scale")
    assert {name for name, tensor in t.items() if tensor.requires_grad} == set(leaves)
    gradients = torch.autograd.grad(outcome.loss, [t[name] for name in leaves])

    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in t.items()}
    x = now.x.double()
    projection = (x - wide["decoder_bias"]) @ wide["atoms"].T
    code = (projection + wide["bias"] > 0) * wide["scale"] * projection
    error = x - code @ wide["atoms"] - wide["decoder_bias"]
    expected = error.square().sum(1).mean()
    torch.testing.assert_close(outcome.loss.double(), expected, rtol=1e-5, atol=1e-6)
    theirs = torch.autograd.grad(expected, [wide[name] for name in leaves])
    for ours, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(ours.double(), other, rtol=1e-4, atol=1e-5)
    assert torch.equal(outcome.active, (code > 0).sum(0))


def test_the_finished_dictionary_has_the_code_of_training_row_by_row() -> None:
    learner, x = GBA(), step().x
    t = prepared(learner)
    finished = learner.finished(t)
    assert sorted(finished) == ["atoms", "decoder_bias", "encoder_bias", "encoder_weight", "offset"]
    projection = (x - t["decoder_bias"]) @ t["atoms"].T
    expected = (projection + t["bias"] > 0) * t["scale"] * projection
    code = learner.encode(finished, x)
    torch.testing.assert_close(code, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(code[3], learner.encode(finished, x[3]))


def test_scale_and_mean_fold_into_the_tensors_exactly(
    check_fold: Callable[[Learner, Tensors, Tensor], None],
) -> None:
    learner = GBA()
    check_fold(learner, learner.finished(prepared(learner)), step(8).x)


def test_windows_of_rows_are_counted_and_then_begin_anew() -> None:
    learner = GBA(window=2 * ROWS, rate=0.1, groups=1)
    t = prepared(learner)
    before = t["bias"].clone()
    gates = torch.cat([(step(s).x - t["decoder_bias"]) @ t["atoms"].T + before for s in (5, 6)])
    for seed in (5, 6):
        learner.loss(t, step(seed))
    assert float(t["seen"]) == 2 * ROWS
    assert torch.equal(t["fired"], (gates > 0).sum(0).float())
    torch.testing.assert_close(t["peak"], gates.amax(0).clamp(min=0).detach())
    assert torch.equal(t["bias"], before)
    group = torch.zeros(LATENTS, dtype=torch.long)
    expected = moved(
        before, t["fired"] / (2 * ROWS), t["peak"].clone(), learner.targets(LATENTS), group, 0.1
    )
    learner.loss(t, step(7))  # a window is full: the rule is applied first
    torch.testing.assert_close(t["bias"], expected)
    assert float(t["seen"]) == ROWS


def test_scales_stay_positive() -> None:
    learner = GBA()
    t = prepared(learner)
    with torch.no_grad():
        t["scale"][2] = -1.0
        learner.constrain(t)
        assert float(t["scale"].min()) > 0


def test_after_training_latents_are_as_active_as_they_may_be() -> None:
    """And decode(encode(x)) is that of training: the scale and the mean are folded exactly."""
    atoms = functional.normalize(randn(16, 12), dim=1)
    on = torch.rand(4000, 16, generator=torch.Generator().manual_seed(1)) < 0.1
    x = 4 * (on * (0.5 + randn(4000, 16, seed=2).abs())) @ atoms + 2
    learner = GBA(highest=0.1, lowest=0.05, groups=2, rate=0.05, window=1024)
    dictionary = fit(
        x, "gba", n_latents=16, steps=300, batch_size=128, learning_rate=1e-2,
        highest=0.1, lowest=0.05, groups=2, rate=0.05, window=1024,
    )  # fmt: skip
    activity = (dictionary.encode(x) > 0).float().mean(0)
    assert float((activity <= 1.1 * learner.targets(16)).float().mean()) >= 0.95
    assert float(activity.min()) > 0
    shift = dictionary.decoder_bias
    scale = (dictionary.encoder_weight * dictionary.atoms).sum(1)
    projection = (x - shift) @ dictionary.atoms.T
    gate = dictionary.tensors["offset"] / scale
    expected = (projection > gate) * scale * projection @ dictionary.atoms + shift
    clear = ((projection - gate).abs() > 1e-3).all(1)  # rounding decides about the others
    torch.testing.assert_close(dictionary(x)[clear], expected[clear], rtol=1e-4, atol=1e-3)


def test_options_are_checked() -> None:
    for options in ({"highest": 1.5}, {"lowest": 0.0}, {"rate": 0.0}, {"groups": 0}, {"window": 0}):
        with pytest.raises(InputError, match=f"{next(iter(options))} must"):
            GBA(**options)
    with pytest.raises(InputError, match=r"lowest = 0\.2 must not exceed highest = 0\.1"):
        GBA(lowest=0.2)
