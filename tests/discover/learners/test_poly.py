"""PolySAE: linear without its higher terms, orthonormal mixing, products of latents found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import Start, Step, Tensors
from salve_plugin.discover.learners.poly import Poly, interaction
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.training.folding import folded
from salve_plugin.errors import InputError

HalfTrained = Callable[..., tuple[Tensors, Step]]
Train = Callable[..., Dictionary]


def test_without_higher_terms_it_is_topk(half_trained: HalfTrained) -> None:
    t, step = half_trained(Poly(k=3))
    t["strengths"] = torch.zeros(2, dtype=torch.float64)
    poly, topk = Poly(k=3), TopK(k=3)
    common = topk.finished(t)
    code = poly.encode(poly.finished(t), step.x)
    assert torch.equal(code, topk.encode(common, step.x))
    torch.testing.assert_close(poly.decode(poly.finished(t), code), topk.decode(common, code))
    torch.testing.assert_close(poly.loss(t, step).loss, topk.loss(t, step).loss)


def test_the_reconstruction_is_its_formula_entry_by_entry(half_trained: HalfTrained) -> None:
    learner = Poly(k=3, rank=4)
    t, step = half_trained(learner)
    done = learner.finished(t)
    code = learner.encode(done, step.x)
    basis = t["atoms"] @ t["mixing"]
    for row, back in zip(code, learner.decode(done, code), strict=True):
        expected = t["decoder_bias"] + row @ t["atoms"]
        for column in range(4):
            a = (row @ basis[:, column]).detach()
            expected = expected + t["strengths"][0] * a**2 * t["quadratic"][column]
            expected = expected + t["strengths"][1] * a**3 * t["cubic"][column]
        torch.testing.assert_close(back, expected.detach())


def test_the_loss_and_its_gradients_are_those_of_its_formula(half_trained: HalfTrained) -> None:
    learner = Poly(k=3)
    t, step = half_trained(learner)
    terms = {"pairs": t["strengths"][0] * t["quadratic"], "triples": t["strengths"][1] * t["cubic"]}
    code = learner.encode(t, step.x)
    formula = (step.x - learner.decode({**t, **terms}, code)).square().sum(1).mean()
    outcome = learner.loss(t, step)
    torch.testing.assert_close(outcome.loss, formula)
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    assert len(trained) == 8
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(formula, trained)
    )
    dead = replace(step, dead=torch.arange(12) < 4)
    assert float(learner.loss(t, dead).loss.detach()) > float(outcome.loss.detach())


@pytest.mark.parametrize(("latents", "rank"), [(12, 64), (12, 3), (4, 64)])
def test_the_mixed_atoms_are_orthonormal_after_a_step_and_span_the_same(
    half_trained: HalfTrained, latents: int, rank: int
) -> None:
    learner = Poly(k=2, rank=rank)
    t, _ = half_trained(learner, latents=latents)
    before = t["atoms"] @ t["mixing"]
    with torch.no_grad():
        learner.constrain(t)
    basis = (t["atoms"] @ t["mixing"]).detach()
    assert basis.shape[1] == min(rank, latents, 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double())
    torch.testing.assert_close(basis @ (basis.T @ before), before.detach())
    once = t["mixing"].detach().clone()
    with torch.no_grad():
        learner.constrain(t)
    torch.testing.assert_close(t["mixing"].detach(), once)


def test_the_fold_multiplies_codes_and_reconstructions(half_trained: HalfTrained) -> None:
    learner = Poly(k=3)
    trained, step = half_trained(learner)
    t, x = learner.finished(trained), step.x
    code, mean = learner.encode(t, x), torch.linspace(-3, 3, x.shape[1]).double()
    raw = folded(learner, t, mean, 7.3)
    torch.testing.assert_close(learner.encode(raw, 7.3 * x + mean), 7.3 * code)
    torch.testing.assert_close(
        learner.decode(raw, 7.3 * code), 7.3 * learner.decode(t, code) + mean
    )
    alone = torch.cat([learner.decode(t, learner.encode(t, row[None])) for row in x])
    torch.testing.assert_close(alone, learner.decode(t, code))


def test_two_latents_add_the_direction_of_their_interaction(half_trained: HalfTrained) -> None:
    """Of second order: f(z) − f(z₁) − f(z₂) + f(0) without the cubic term."""
    learner = Poly(k=3)
    t = learner.finished(half_trained(learner)[0])
    t["triples"] = torch.zeros_like(t["triples"])
    both = torch.zeros(3, 12, dtype=torch.float64)
    both[0, 2] = both[2, 2] = 1.7
    both[1, 5] = both[2, 5] = -0.4
    one, other, joint = learner.decode(t, both)
    added = joint - one - other + t["decoder_bias"]
    torch.testing.assert_close(added, 1.7 * -0.4 * interaction(t, 2, 5))


def products(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows of 8 atoms of width 16, and the direction that the first two add together."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.linalg.qr(torch.randn(16, 16, generator=random)).Q
    codes = (torch.rand(4000, 8, generator=random) < 0.25) * (
        0.5 + torch.rand(4000, 8, generator=random)
    )
    product = codes[:, 0] * codes[:, 1]
    noise = 0.01 * torch.randn(4000, 16, generator=random)
    return codes @ truth[:8] + product[:, None] * truth[8] + noise, truth


@pytest.mark.slow
def test_a_planted_product_is_explained_better_than_by_topk(train: Train) -> None:
    rows, truth = products()
    arguments = {"n_latents": 8, "steps": 600, "learning_rate": 0.01}
    poly, topk = (train(learner(k=4), rows, **arguments) for learner in (Poly, TopK))
    along = truth[8]  # what no atom of the eight explains

    def missed(found: Dictionary) -> float:
        left = (rows - found(rows)) @ along
        return float(left.square().mean() / (rows @ along).var())

    assert missed(poly) < 0.5 * missed(topk)
    assert poly.meta["held_out_r2"] > topk.meta["held_out_r2"]  # type: ignore[operator] # numbers
    first, second = ((poly.atoms @ truth[atom]).argmax() for atom in (0, 1))
    between = functional.normalize(interaction(poly.tensors, int(first), int(second)), dim=0)
    assert float(between @ along) > 0.5


def test_planted_atoms_are_found(train: Train, flat: Any) -> None:
    found = train(Poly(k=2), flat.rows, steps=300, learning_rate=0.03)
    assert float((flat.cosines(found.atoms) > 0.9).double().mean()) > 0.85


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="rank must be a whole number"):
        Poly(rank=0)
    with pytest.raises(InputError, match="k = 4"):
        Poly(k=4).prepare(Start(torch.eye(3), torch.eye(3), 1.0, torch.Generator()))
