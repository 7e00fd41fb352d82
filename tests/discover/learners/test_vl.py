"""VL-SAE's encoder: lengths make no difference, values lie in [0, 2], the fold keeps the centre."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import Start, Step, Tensors
from salve_plugin.discover.learners.vl import VL, nearness
from salve_plugin.discover.training.folding import folded
from salve_plugin.errors import InputError

HalfTrained = Callable[..., tuple[Tensors, Step]]


def finished(half_trained: HalfTrained, k: int = 3) -> tuple[VL, Tensors, Tensor]:
    """Return a learner, finished tensors with a centre at 0, and rows."""
    learner = VL(k=k)
    t, step = half_trained(learner)
    with torch.no_grad():
        learner.constrain(t)
    return learner, learner.finished(t), step.x


@settings(deadline=None, max_examples=30, derandomize=True)
@given(length=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_nearness_is_two_minus_a_distance_whatever_the_lengths(length: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, generator=random, dtype=torch.float64)
    weight = torch.randn(5, 4, generator=random, dtype=torch.float64)
    h = nearness(x, weight)
    assert bool(((h >= 0) & (h <= 2)).all())
    torch.testing.assert_close(nearness(length * x, weight / length), h)
    apart = functional.normalize(x)[:, None] - functional.normalize(weight)[None]
    torch.testing.assert_close(h, 2 - apart.norm(dim=-1))


def test_the_extremes_are_two_and_zero() -> None:
    x = torch.randn(1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = nearness(x, torch.cat([3 * x, -x]))
    torch.testing.assert_close(h, torch.tensor([[2.0, 0.0]]).double(), atol=2e-4, rtol=0)


def test_codes_are_the_k_nearest_whatever_the_distance_from_the_centre(
    half_trained: HalfTrained,
) -> None:
    learner, t, x = finished(half_trained)
    code = learner.encode(t, x)
    assert (code != 0).sum(1).tolist() == [3] * len(x)
    centre = t["decoder_bias"] - t["offset"]
    torch.testing.assert_close(learner.encode(t, centre + 5 * (x - centre)), code)
    cosines = functional.normalize(x - centre) @ functional.normalize(t["encoder_weight"]).T
    assert code.bool().tolist() == (cosines >= cosines.topk(3).values[:, -1:]).tolist()


def test_the_fold_multiplies_codes_and_moves_nothing_else(half_trained: HalfTrained) -> None:
    learner, t, x = finished(half_trained)
    code, mean = learner.encode(t, x), torch.linspace(-3, 3, x.shape[1]).double()
    raw = folded(learner, t, mean, 7.3)
    torch.testing.assert_close(raw["decoder_bias"] - raw["offset"], mean)
    torch.testing.assert_close(learner.encode(raw, 7.3 * x + mean), 7.3 * code)
    back = learner.decode(raw, learner.encode(raw, 7.3 * x + mean))
    torch.testing.assert_close(back, 7.3 * learner.decode(t, code) + mean)


def test_a_row_is_coded_alike_alone_and_among_others(half_trained: HalfTrained) -> None:
    learner, t, x = finished(half_trained)
    alone = torch.cat([learner.encode(t, row[None]) for row in x])
    torch.testing.assert_close(alone, learner.encode(t, x))
    shaped = learner.encode(t, x.view(4, 5, -1))
    torch.testing.assert_close(shaped, learner.encode(t, x).view(4, 5, -1))


def test_the_loss_and_its_gradients_are_those_of_its_formula(half_trained: HalfTrained) -> None:
    learner = VL(k=3)
    t, step = half_trained(learner)
    # In training the centre is the origin, whatever becomes of the decoder's bias.
    centred = {**t, "offset": t["decoder_bias"]}
    code = learner.encode(centred, step.x)
    formula = (step.x - learner.decode(t, code)).square().sum(1).mean()
    outcome = learner.loss(t, step)
    torch.testing.assert_close(outcome.loss, formula)
    assert outcome.active.tolist() == (code != 0).sum(0).tolist()
    trained = [t[name] for name in ("atoms", "encoder_weight", "decoder_bias", "gain")]
    assert all(tensor.requires_grad for tensor in trained)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(formula, trained)
    )


def test_bfloat16_changes_the_loss_by_its_precision_only(half_trained: HalfTrained) -> None:
    learner = VL(k=3)
    t, step = half_trained(learner)
    t = {name: value.detach().float().requires_grad_() for name, value in t.items()}
    step = replace(step, x=step.x.float())
    exact = learner.loss(t, step).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = learner.loss(t, step).loss
    rounded.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def test_the_start_reconstructs_better_than_the_mean(flat: Any) -> None:
    rows = flat.rows - flat.rows.mean(0)
    rows = rows / rows.square().sum(1).mean().sqrt()
    start = Start(rows[:1000], functional.normalize(rows[:30]), 1.0, torch.Generator())
    learner = VL(k=2)
    t = learner.finished(learner.prepare(start))
    left = start.rows - learner.decode(t, learner.encode(t, start.rows))
    assert float(left.square().sum()) < 0.95 * float(start.rows.square().sum())


def test_planted_atoms_are_found(train: Callable[..., Dictionary], flat: Any) -> None:
    found = train(VL(k=2), flat.rows, steps=300, learning_rate=0.03)
    assert float((flat.cosines(found.atoms) > 0.9).double().mean()) > 0.85
    centre = found.decoder_bias - found.tensors["offset"]
    trained_on = flat.rows.mean(0)
    assert float((centre - trained_on).norm()) < 0.05
    torch.testing.assert_close(
        found.encode(centre + 3 * (flat.rows - centre)), found.encode(flat.rows),
        atol=1e-3, rtol=1e-3,
    )  # fmt: skip


def test_a_row_at_the_centre_and_one_at_a_latent_have_finite_gradients() -> None:
    x = torch.eye(3).requires_grad_()
    h = nearness(torch.cat([x, torch.zeros(1, 3)]), torch.eye(3))
    h.sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert x.grad is not None
    assert bool(h.isfinite().all())
    assert bool(x.grad.isfinite().all())


def test_more_active_latents_than_there_are_is_refused() -> None:
    atoms = torch.eye(3)
    with pytest.raises(InputError, match="k = 4"):
        VL(k=4).prepare(Start(atoms, atoms, 1.0, torch.Generator()))
