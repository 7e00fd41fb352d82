"""Feature Choice: latents choose rows; Mutual Choice is BatchTopK."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.batch_topk import BatchTopK
from salve_plugin.discover.learners.feature_choice import FeatureChoice, column_choice
from salve_plugin.discover.learners.mutual_choice import MutualChoice
from salve_plugin.discover.learners.zipf import places
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError

ROWS, WIDTH, LATENTS = 32, 6, 10


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def start() -> Start:
    atoms = functional.normalize(randn(LATENTS, WIDTH), dim=1)
    return Start(randn(40, WIDTH, seed=1), atoms, 0.8, torch.Generator())


def step(seed: int, progress: float = 0.0) -> Step:
    x = randn(ROWS, WIDTH, seed=seed) / WIDTH**0.5
    return Step(x, torch.zeros(LATENTS, dtype=torch.bool), progress)


def trained(learner: Learner, steps: int = 30) -> tuple[Tensors, list[Tensor]]:
    """Return tensors after a few steps of plain gradient descent, and all losses."""
    t, losses = learner.prepare(start()), []
    for number in range(steps):
        loss = learner.loss(t, step(number, number / steps)).loss
        moved = [tensor for tensor in t.values() if tensor.requires_grad]
        with torch.no_grad():
            for tensor, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                tensor -= 0.1 * gradient
            learner.constrain(t)
        losses.append(loss.detach())
    return t, losses


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 10_000))
def test_each_column_keeps_its_largest_by_brute_force(rows: int, latents: int, seed: int) -> None:
    scores = randn(rows, latents, seed=seed).double()
    counts = torch.randint(0, rows + 1, (latents,), generator=torch.Generator().manual_seed(seed))
    kept, smallest = column_choice(scores, counts)
    for latent, count in enumerate(counts.tolist()):
        best = sorted(range(rows), key=lambda row: -float(scores[row, latent]))[:count]
        assert sorted(kept[:, latent].nonzero().flatten().tolist()) == sorted(best)
        expected = float(scores[best[-1], latent]) if best else torch.inf
        assert float(smallest[latent]) == expected


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_each_latent_keeps_exactly_as_many_rows_as_it_has_places(exponent: float) -> None:
    learner = FeatureChoice(k=3, exponent=exponent)
    t, now = learner.prepare(start()), step(0)
    with torch.no_grad():
        support = learner.select(learner.pre_activation(t, now.x), t, now)
    counts = support.counts()
    by_rank = places(LATENTS, 3 * ROWS, ROWS, exponent, 0.0)
    assert torch.equal(counts[t["density"].argsort(descending=True, stable=True)], by_rank)
    assert int(counts.sum()) == 3 * ROWS
    assert int(counts.min()) >= 1  # no latent goes without


def test_wanted_latents_get_more_places_than_others() -> None:
    learner = FeatureChoice(k=2)
    t = learner.prepare(start())
    for number in range(5):
        now = step(number, number / 5)
        pre = randn(ROWS, LATENTS, seed=number) + torch.linspace(0, 2, LATENTS)
        support = learner.select(pre, t, now)
    assert support.counts()[-1] == support.counts().max()
    by_density = support.counts()[t["density"].argsort()].tolist()
    assert by_density == sorted(by_density)
    assert by_density[0] < by_density[-1]


def test_the_loss_is_that_of_the_chosen_code_by_brute_force() -> None:
    learner = FeatureChoice(k=2, aux=0.0)
    t, now = learner.prepare(start()), step(0)
    outcome = learner.loss(t, now)
    with torch.no_grad():
        x, atoms = now.x.double(), t["atoms"].double()
        pre = x @ t["encoder_weight"].double().T
        counts = torch.empty(LATENTS, dtype=torch.long)
        counts[t["density"].argsort(descending=True, stable=True)] = places(
            LATENTS, 2 * ROWS, ROWS, 1.0, 0.0
        )
        code = torch.zeros_like(pre)
        for latent, count in enumerate(counts.tolist()):
            rows = pre[:, latent].argsort(descending=True)[:count]
            code[rows, latent] = pre[rows, latent].clamp(min=0)
        expected = (x - code @ atoms).square().sum(1).mean()
    torch.testing.assert_close(outcome.loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(outcome.active, (code > 0).sum(0))


def test_a_latent_that_is_negative_on_the_whole_batch_still_learns() -> None:
    learner = FeatureChoice(k=2, aux=0.0)
    t = learner.prepare(start())
    with torch.no_grad():
        t["encoder_bias"][4] = -5.0
    outcome = learner.loss(t, step(0))
    (gradient,) = torch.autograd.grad(outcome.loss, [t["encoder_bias"]])
    assert gradient[4] != 0
    assert int(outcome.active[4]) >= 1


def test_thresholds_follow_the_smallest_kept_value_of_each_latent() -> None:
    learner = FeatureChoice(k=2, exponent=0.0)
    t = learner.prepare(start())
    first, second = randn(ROWS, LATENTS, seed=1).abs(), randn(ROWS, LATENTS, seed=2).abs()
    smallest = []
    for number, pre in enumerate((first, second)):
        kept = learner.select(pre, t, step(0, number / 2)).dense(torch.ones(2 * ROWS)) > 0
        smallest.append(torch.where(kept, pre, torch.inf).amin(0))
    torch.testing.assert_close(t["threshold"], 0.9 * smallest[0] + 0.1 * smallest[1])


def test_the_code_of_a_row_does_not_depend_on_the_others_and_is_about_as_sparse() -> None:
    learner = FeatureChoice(k=2)
    t = learner.finished(trained(learner)[0])
    x = step(99).x
    code = learner.encode(t, x)
    torch.testing.assert_close(code[3], learner.encode(t, x[3]))
    pre = learner.pre_activation(t, x)
    assert torch.equal(code, torch.where(pre > t["threshold"], pre, torch.zeros(())))
    assert (t["threshold"] >= 0).all()


def test_scale_and_mean_fold_into_the_tensors_exactly(
    check_fold: Callable[[Learner, Tensors, Tensor], None],
) -> None:
    learner = FeatureChoice(k=2)
    check_fold(learner, learner.finished(trained(learner)[0]), step(8).x)


def test_mutual_choice_is_batch_topk() -> None:
    ours, losses = trained(MutualChoice(k=2))
    theirs, expected = trained(BatchTopK(k=2))
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)


@pytest.mark.parametrize("kind", [MutualChoice, FeatureChoice])
def test_rare_latents_learn_the_error_if_they_are_asked_to(kind: type[MutualChoice]) -> None:
    learner = kind(k=1, aux_zipf=True, exponent=1.0)
    t = learner.prepare(start())
    with torch.no_grad():
        t["encoder_bias"][4] = -100.0  # never wanted, though not dead long enough
    learner.loss(t, step(0))
    found = []
    for each in (learner, kind(k=1)):
        loss = each.loss(t, step(1, 0.5)).loss
        found.append(torch.autograd.grad(loss, [t["encoder_bias"]])[0][4])
    assert found[0] != found[1]
    if kind is MutualChoice:  # in Feature Choice it learns anyway
        assert found[1] == 0


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="exponent must be a finite number of at least 0"):
        FeatureChoice(exponent=-1.0)
    with pytest.raises(InputError, match="shift must be"):
        MutualChoice(shift=float("nan"))
    with pytest.raises(InputError, match="k = 11 latents"):
        FeatureChoice(k=11).prepare(start())


def zipf_rows(n: int) -> tuple[Tensor, Tensor]:
    """Rows made of 32 atoms in 24 dimensions, whose frequencies follow a Zipf law."""
    random = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(32, 24, generator=random), dim=1)
    law = 1 / torch.arange(1, 33)
    often = (2 * law / law.sum()).clamp(max=0.5)
    on = torch.rand(n, 32, generator=random) < often
    return (on * (0.5 + torch.rand(n, 32, generator=random))) @ atoms, atoms


@pytest.mark.slow
def test_zipf_shares_recover_zipf_data_better_than_equal_ones() -> None:
    x, atoms = zipf_rows(8000)
    found = {}
    for exponent in (0.0, 1.0):
        dictionary = fit(
            x, "feature_choice", n_latents=32, k=2, exponent=exponent, steps=500,
            learning_rate=1e-2,
        )  # fmt: skip
        found[exponent] = float((atoms @ dictionary.atoms.T).amax(1).mean())
        assert dictionary.meta["dead_share"] == 0
        again = dictionary.decode(dictionary.encode(x[:7]))
        torch.testing.assert_close(again, dictionary(x)[:7])
    assert found[1.0] > found[0.0] + 0.05
    assert found[1.0] > 0.9
