"""MP-SAE: its loss against unrolled residuals, recovery, and that more steps never hurt."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.matching_pursuit import MatchingPursuit
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.errors import InputError

HalfTrained = Callable[..., tuple[Tensors, Step]]
Train = Callable[..., Dictionary]

SHORT = {"steps": 300, "learning_rate": 0.03}


def unrolled(t: Tensors, x: Tensor, k: int, signed: bool) -> Tensor:
    """Return what k steps of pursuit leave, by the definition."""
    left = x - t["decoder_bias"]
    for _ in range(k):
        correlations = left @ t["atoms"].T
        best = (correlations.abs() if signed else correlations).argmax(1)
        value = correlations.gather(1, best[:, None])
        left = left - (value if signed else functional.relu(value)) * t["atoms"][best]
    return left


@pytest.mark.parametrize("signed", [False, True])
def test_the_loss_and_its_gradients_are_those_of_unrolled_pursuit(
    half_trained: HalfTrained, signed: bool
) -> None:
    learner = MatchingPursuit(k=4, signed=signed)
    t, step = half_trained(learner)
    reference = unrolled(t, step.x, 4, signed).square().sum(1).mean()
    outcome = learner.loss(t, step)
    torch.testing.assert_close(outcome.loss, reference)
    trained = [t["atoms"], t["decoder_bias"]]
    assert {name for name in t if t[name].requires_grad} == {"atoms", "decoder_bias"}
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(reference, trained)
    )


@pytest.mark.parametrize("signed", [False, True])
def test_codes_depend_on_nothing_but_their_row(
    check_inference: Callable[[Learner], None], signed: bool
) -> None:
    check_inference(MatchingPursuit(k=3, signed=signed))


def test_what_training_counts_as_active_is_what_the_code_has(half_trained: HalfTrained) -> None:
    learner = MatchingPursuit(k=4)
    t, step = half_trained(learner)
    with torch.no_grad():
        learner.constrain(t)
    code = learner.encode(t, step.x)
    assert learner.loss(t, step).active.tolist() == (code != 0).sum(0).tolist()
    error = (step.x - learner.decode(t, code)).square().sum(1).mean()
    torch.testing.assert_close(learner.loss(t, step).loss, error)


def test_dead_atoms_learn_the_error_and_the_living_are_left_alone(
    half_trained: HalfTrained,
) -> None:
    t, step = half_trained(MatchingPursuit(k=2))
    dead = replace(step, dead=torch.arange(12) < 4)

    def gradient(aux: float, step: Step) -> Tensor:
        loss = MatchingPursuit(k=2, aux=aux).loss(t, step).loss
        return torch.autograd.grad(loss, t["atoms"])[0]

    torch.testing.assert_close(gradient(1.0, step), gradient(0.0, step))
    extra = gradient(1.0, dead) - gradient(0.0, dead)
    assert float(extra[:4].abs().min(1).values.max()) > 0
    torch.testing.assert_close(extra[4:], torch.zeros_like(extra[4:]))
    # Of either sign, even where codes have one: an atom can learn from what is opposite to it.
    left = unrolled(t, step.x, 2, signed=False).detach()
    missed = unrolled({"atoms": t["atoms"][:4], "decoder_bias": 0 * left[0]}, left, 2, signed=True)
    share = missed.square().sum() / left.square().sum()
    losses = [MatchingPursuit(k=2, aux=aux).loss(t, dead).loss for aux in (1.0, 0.0)]
    torch.testing.assert_close(losses[0] - losses[1], share)


@pytest.fixture(scope="module")
def found(train: Train, flat: Any) -> Dictionary:
    return train(MatchingPursuit(k=2), flat.rows, **SHORT)


def test_a_fitted_dictionary_is_tied_and_more_steps_never_worsen_it(
    found: Dictionary, flat: Any
) -> None:
    assert torch.equal(found.encoder_weight, found.atoms)
    torch.testing.assert_close(
        found.encoder_bias, -(found.atoms @ found.decoder_bias), atol=1e-5, rtol=1e-5
    )
    errors = []
    for k in (1, 2, 4, 8, 16):
        more = MatchingPursuit(k=k)
        code = more.encode(found.tensors, flat.rows)
        assert int((code != 0).sum(1).max()) <= k
        errors.append((flat.rows - more.decode(found.tensors, code)).square().sum(1))
    for before, after in pairwise(errors):
        assert bool((after <= before * (1 + 1e-4) + 1e-6).all())


def test_planted_atoms_are_found(found: Dictionary, flat: Any) -> None:
    assert float((flat.cosines(found.atoms) > 0.9).double().mean()) > 0.85


def test_it_explains_rows_better_than_topk_with_as_many_latents(
    found: Dictionary, train: Train, flat: Any
) -> None:
    topk = train(TopK(k=2), flat.rows, **SHORT)
    assert found.meta["held_out_r2"] > topk.meta["held_out_r2"] + 0.01  # type: ignore[operator] # numbers


def test_atoms_of_signed_codes_are_found_by_magnitude_and_not_by_value(
    train: Train, signed: Any
) -> None:
    by_size = train(MatchingPursuit(k=2, signed=True), signed.rows, **SHORT)
    by_value = train(MatchingPursuit(k=2), signed.rows, **SHORT)
    sizes, values = (
        float((signed.cosines(found.atoms, signed=True) > 0.9).double().mean())
        for found in (by_size, by_value)
    )
    assert sizes > 0.85
    assert values < sizes - 0.2
    assert bool((by_size.encode(signed.rows) < 0).any())
    assert not bool((by_value.encode(signed.rows) < 0).any())


def test_bfloat16_changes_the_loss_by_its_precision_only(half_trained: HalfTrained) -> None:
    learner = MatchingPursuit(k=4)
    t, step = half_trained(learner)
    t = {name: value.detach().float().requires_grad_() for name, value in t.items()}
    step = replace(step, x=step.x.float(), dead=torch.arange(12) < 4)
    exact = learner.loss(t, step).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = learner.loss(t, step).loss
    rounded.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def test_more_steps_than_latents_are_refused() -> None:
    atoms = torch.eye(3)
    with pytest.raises(InputError, match="k = 4"):
        MatchingPursuit(k=4).prepare(Start(atoms, atoms, 1.0, torch.Generator()))
    with pytest.raises(InputError, match="k must be a whole number"):
        MatchingPursuit(k=0)
