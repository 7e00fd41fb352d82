"""vSAE: AbsTopK without noise and divergence, its divergence, and that it is not better."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.abs_topk import AbsTopK
from salve_plugin.discover.learners.base import Learner, Step, Tensors
from salve_plugin.discover.learners.variational import Variational, divergence
from salve_plugin.discover.recording.team import Team
from salve_plugin.errors import InputError

HalfTrained = Callable[..., tuple[Tensors, Step]]
Train = Callable[..., Dictionary]


def seeded(step: Step, progress: float = 1.0) -> Step:
    return replace(step, random=torch.Generator().manual_seed(0), progress=progress)


def test_without_divergence_and_noise_it_is_abs_topk(half_trained: HalfTrained) -> None:
    learner, plain = Variational(k=3, kl=0.0, noise=0.0), AbsTopK(k=3)
    t, step = half_trained(learner)
    step = replace(step, dead=torch.arange(12) < 4)
    outcome, expected = learner.loss(t, seeded(step)), plain.loss(t, step)
    torch.testing.assert_close(outcome.loss, expected.loss)
    assert outcome.active.tolist() == expected.active.tolist()
    trained = [t[name] for name in ("atoms", "encoder_weight", "encoder_bias", "decoder_bias")]
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(expected.loss, trained)
    )
    assert torch.equal(
        learner.encode(learner.finished(t), step.x), plain.encode(plain.finished(t), step.x)
    )


def test_the_noise_has_the_spread_it_says_and_vanishes_with_it(half_trained: HalfTrained) -> None:
    t, step = half_trained(Variational(k=3))
    exact = AbsTopK(k=3).loss(t, step).loss

    def gap(noise: float) -> float:
        loss = Variational(k=3, kl=0.0, noise=noise).loss(t, seeded(step)).loss
        return abs(float((loss - exact).detach()))

    assert gap(1e-6) < 1e-4 < gap(1.0)


def test_the_loss_is_that_of_a_draw_plus_the_divergence(half_trained: HalfTrained) -> None:
    learner = Variational(k=3, kl=0.01)
    t, step = half_trained(learner)
    mean = step.x @ t["encoder_weight"].T + t["encoder_bias"]
    log_variance = (step.x @ t["spread_weight"].T + t["spread_bias"]).clamp(-6, 2)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0), dtype=mean.dtype)
    drawn = mean + (log_variance / 2).exp() / math.sqrt(3) * noise
    smallest = drawn.abs().topk(3).values[:, -1:]
    back = (drawn * (drawn.abs() >= smallest)) @ t["atoms"] + t["decoder_bias"]
    error = (step.x - back).square().sum(1).mean()
    prior = divergence(math.sqrt(3) * mean, log_variance)
    for progress, share in ((0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.9, 1.0)):
        loss = learner.loss(t, seeded(step, progress)).loss
        torch.testing.assert_close(loss, error + 0.01 * share * prior)
    loss = learner.loss(t, seeded(step)).loss
    gradients = torch.autograd.grad(loss, [t["spread_weight"], t["spread_bias"]])
    assert all(bool(gradient.any()) for gradient in gradients)


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(9, 4, generator=random, dtype=torch.float64)
    log_variance = torch.randn(9, 4, generator=random, dtype=torch.float64)
    exact = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_variance), exact.sum(1).mean())


def test_two_processes_draw_the_noise_of_one(half_trained: HalfTrained) -> None:
    class First(Team):
        """The first of two processes, which has every second row."""

        @property
        def size(self) -> int:
            return 2

    class Second(First):
        @property
        def rank(self) -> int:
            return 1

    learner = Variational(k=3)
    t, step = half_trained(learner)
    together = float(learner.loss(t, seeded(step)).loss.detach())
    halves = []
    for team in (First(), Second()):
        mine = seeded(replace(step, x=team.share(step.x), team=team))
        halves.append(float(learner.loss(t, mine).loss.detach()))
    assert sum(halves) / 2 == pytest.approx(together)


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(Variational(k=3))


@pytest.mark.filterwarnings("ignore:.*of the latents are dead")
def test_it_explains_less_than_abs_topk(train: Train, signed: Any) -> None:
    """The published result is negative: noise and prior cost reconstruction."""
    noisy, plain = (
        train(learner(k=2), signed.rows, steps=300) for learner in (Variational, AbsTopK)
    )
    noisy_r2, plain_r2 = noisy.meta["held_out_r2"], plain.meta["held_out_r2"]
    assert 0.2 < noisy_r2 < plain_r2  # type: ignore[operator] # numbers


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="kl must be a finite number"):
        Variational(kl=-1.0)
    with pytest.raises(InputError, match="noise must be a finite number"):
        Variational(noise=float("nan"))
