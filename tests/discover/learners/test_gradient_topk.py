"""g-SAE: TopK that prefers, in training, what the model's loss depends on."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import Start, Step
from salve_plugin.discover.learners.gradient_topk import (
    GradientTopK,
    gradient_code,
    gradient_scores,
)
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError
from salve_plugin.site import Site

ROWS, WIDTH, LATENTS = 9, 5, 12
NONE_DEAD = torch.zeros(LATENTS, dtype=torch.bool)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def start(seed: int = 0) -> Start:
    atoms = functional.normalize(randn(LATENTS, WIDTH, seed=seed), dim=1)
    return Start(randn(40, WIDTH, seed=seed + 1), atoms, 0.8, torch.Generator())


def step(gradient: Tensor | None = None) -> Step:
    return Step(randn(ROWS, WIDTH, seed=7) / WIDTH**0.5, NONE_DEAD, gradient=gradient)


def test_scores_are_the_first_order_effect_of_removing_a_latent_by_brute_force() -> None:
    pre, gradient = randn(ROWS, LATENTS, seed=1).double(), randn(ROWS, WIDTH, seed=2).double()
    atoms = functional.normalize(randn(LATENTS, WIDTH, seed=3), dim=1).double()
    expected = torch.tensor(
        [
            [
                max(h, 0.0) * (1 + 2.5 * abs(sum(g * v for g, v in zip(row, atom, strict=True))))
                for h, atom in zip(pres, atoms.tolist(), strict=True)
            ]
            for pres, row in zip(pre.tolist(), gradient.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(gradient_scores(pre, gradient, atoms, 2.5), expected)


def test_the_kept_latents_are_those_of_the_largest_scores() -> None:
    learner, gradient = GradientTopK(k=2, beta=3.0), randn(ROWS, WIDTH, seed=2)
    t, now = learner.prepare(start()), step(gradient)
    with torch.no_grad():
        pre = learner.pre_activation(t, now.x)
        support = learner.select(pre, t, now)
        scores = gradient_scores(pre, gradient, t["atoms"], 3.0)
        kept = support.dense(torch.ones(2 * ROWS)) > 0
        plain = TopK(k=2).select(pre, t, now).dense(torch.ones(2 * ROWS)) > 0
    second = scores.sort(dim=1, descending=True).values[:, 1:2]
    positive = scores > 0  # a row with fewer than 2 of those keeps any others, with value 0
    assert torch.equal(kept & positive, (scores >= second) & positive)
    assert not torch.equal(plain & positive, kept & positive)


def test_with_beta_0_it_is_topk_bit_by_bit() -> None:
    found = []
    for learner in (TopK(k=2), GradientTopK(k=2, beta=0.0)):
        t = learner.prepare(start())
        outcome = learner.loss(t, step())
        outcome.loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        gradients = [tensor.grad for tensor in t.values() if tensor.grad is not None]
        assert len(gradients) == 4
        found.append([outcome.loss, outcome.active, *gradients])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_the_choice_depends_only_on_the_product_of_loss_and_beta() -> None:
    gradient = randn(ROWS, WIDTH, seed=2)
    t = GradientTopK(k=3).prepare(start())
    with torch.no_grad():
        pre = GradientTopK(k=3).pre_activation(t, step().x)
    one = GradientTopK(k=3, beta=2.0).select(pre, t, step(gradient))
    other = GradientTopK(k=3, beta=0.25).select(pre, t, step(8 * gradient))
    assert torch.equal(one.latents, other.latents)


def test_the_finished_dictionary_is_a_topk_dictionary() -> None:
    learner, x = GradientTopK(k=3), randn(20, WIDTH, seed=4)
    t = learner.finished(learner.prepare(start()))
    code = learner.encode(t, x)
    assert torch.equal(code, TopK(k=3).encode(t, x))
    assert torch.equal(code[5], learner.encode(t, x[5:6])[0])


def test_it_says_what_is_missing_without_a_gradient() -> None:
    learner = GradientTopK(k=2)
    with pytest.raises(InputError, match=r"'gradient_topk' with beta = 1 needs the gradient"):
        learner.loss(learner.prepare(start()), step())
    with pytest.raises(InputError, match="beta must be a finite number of at least 0"):
        GradientTopK(beta=-1.0)


def quiet_but_causal(seed: int) -> tuple[Tensor, Tensor]:
    """Rows of 64 atoms in 32 dimensions, and a head that reads only the 12 quiet ones."""
    random = torch.Generator().manual_seed(seed)
    atoms = functional.normalize(torch.randn(64, 32, generator=random), dim=1)
    size = torch.where(torch.arange(64) < 12, 0.3, 1.0)
    on = torch.rand(4000, 64, generator=random) < 3 / 64
    code = on * size * (0.5 + torch.rand(4000, 64, generator=random))
    head = 2 * torch.randn(6, 12, generator=random) @ atoms[:12]
    return code @ atoms, head


@pytest.mark.slow
def test_the_model_works_better_on_reconstructions_the_larger_beta_is() -> None:
    """At the price of the reconstruction, and if latents are chosen as in training."""
    x, head = quiet_but_causal(0)
    target = (x @ head.T).argmax(1)

    def gradient(rows: Tensor) -> Tensor:
        logits = rows @ head.T
        return (logits.softmax(1) - functional.one_hot(logits.argmax(1), 6)) @ head

    def lost(dictionary: Dictionary, code: Tensor) -> float:
        before, after = (
            functional.cross_entropy(rows @ head.T, target) for rows in (x, dictionary.decode(code))
        )
        return float(after - before)

    chosen, plain, r2 = [], [], []
    for beta in (0.0, 1.0, 16.0):
        dictionary = fit(
            x, "gradient_topk", n_latents=64, k=3, beta=beta, steps=300, learning_rate=1e-2,
            batch_size=128, gradient=gradient,
        )  # fmt: skip
        chosen.append(lost(dictionary, gradient_code(dictionary, x, gradient(x))))
        plain.append(lost(dictionary, dictionary.encode(x)))
        r2.append(float(dictionary.meta["held_out_r2"]))  # type: ignore[arg-type] # JSON
    assert chosen[2] < 0.8 * chosen[1] < chosen[0]
    assert r2[2] < r2[0]
    assert plain[0] == pytest.approx(chosen[0], rel=1e-4)
    assert plain[2] > plain[0]  # TopK on h chooses otherwise than training did


def test_codes_by_gradient_are_for_dictionaries_of_this_learner() -> None:
    site = Site("unembed.hook_in", "fc", "in", "pooled", WIDTH)
    learner, x, gradient = GradientTopK(k=2), randn(8, WIDTH), randn(8, WIDTH, seed=1)
    t = learner.finished(learner.prepare(start()))
    for other in (Dictionary(t, learner, site), Dictionary(t, TopK(k=2), site, {"scale": 1.0})):
        with pytest.raises(InputError, match="has no choice by gradient"):
            gradient_code(other, x, gradient)
    with torch.no_grad():
        dictionary = Dictionary(t, learner, site, {"scale": 2.0})
        code = gradient_code(dictionary, x, gradient)
        now = Step(x, NONE_DEAD, gradient=2 * gradient)
        pre = learner.pre_activation(t, x)
        kept = learner.select(pre, t, now).dense(torch.ones(16))
    torch.testing.assert_close(code, kept * pre.relu())
