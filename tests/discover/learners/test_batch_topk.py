"""BatchTopK: what a batch keeps, its threshold, and inference row by row."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import Learner, Step, Tensors
from salve_plugin.discover.learners.batch_topk import MOMENTUM, BatchTopK, smallest_kept
from salve_plugin.discover.training.rows import held_out

if TYPE_CHECKING:
    from tests.discover.learners.conftest import Planted

HalfTrained = Callable[..., tuple[Tensors, Step]]


def test_codes_depend_on_nothing_but_their_row(
    check_inference: Callable[[Learner], None], half_trained: HalfTrained
) -> None:
    learner = BatchTopK(k=3)
    check_inference(learner)
    t, step = half_trained(learner)
    pre = learner.pre_activation(t, step.x)
    above = replace_threshold(t, 0.2)
    assert torch.equal(learner.encode(above, step.x), torch.where(pre > 0.2, pre, 0.0))


def replace_threshold(t: Tensors, value: float) -> Tensors:
    return {**t, "threshold": torch.full_like(t["threshold"], value)}


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    rows=st.integers(1, 6),
    latents=st.integers(1, 8),
    count=st.integers(1, 40),
    guess=st.sampled_from([0.0, 0.3, 0.9, 5.0]),
    seed=st.integers(0, 999),
)
def test_the_smallest_value_kept_is_that_of_its_rank_whatever_was_guessed(
    rows: int, latents: int, count: int, guess: float, seed: int
) -> None:
    scores = torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed))
    step = Step(torch.zeros(rows, 1), torch.zeros(latents, dtype=torch.bool))
    ranked = sorted((score for score in scores.flatten().tolist() if score > 0), reverse=True)
    kept = smallest_kept(scores, count, torch.tensor(guess), step)
    assert float(kept) == (ranked[min(count, len(ranked)) - 1] if ranked else torch.inf)


def test_a_training_batch_keeps_k_latents_of_a_row_on_average(half_trained: HalfTrained) -> None:
    learner = BatchTopK(k=3)
    t, step = half_trained(learner)
    outcome = learner.loss(t, step)
    assert int(outcome.active.sum()) == 3 * len(step.x)
    code = learner.encode(replace_threshold(t, 0.0), step.x).detach()
    smallest = code.flatten().sort(descending=True).values[3 * len(step.x) - 1]
    code = code * (code >= smallest)
    torch.testing.assert_close(
        outcome.loss, (step.x - learner.decode(t, code)).square().sum(1).mean()
    )
    assert len(set((code != 0).sum(1).tolist())) > 1  # but not k in each


def test_the_threshold_starts_at_the_first_value_and_then_follows(
    half_trained: HalfTrained,
) -> None:
    """Starting from zero it would be too low for as long as the mean remembers."""
    learner = BatchTopK(k=3)
    t, step = half_trained(learner)
    t["threshold"].zero_()

    def smallest(x: torch.Tensor) -> float:
        pre = learner.pre_activation(t, x).detach()
        return float(pre.flatten().sort(descending=True).values[3 * len(x) - 1])

    learner.loss(t, step)
    first = float(t["threshold"][0])
    assert first == pytest.approx(smallest(step.x))
    learner.loss(t, replace(step, x=2 * step.x))
    expected = MOMENTUM * first + (1 - MOMENTUM) * smallest(2 * step.x)
    assert t["threshold"].tolist() == pytest.approx([expected] * 12)


def test_a_batch_without_positive_pre_activations_is_survived(half_trained: HalfTrained) -> None:
    learner = BatchTopK(k=3)
    t, step = half_trained(learner)
    t["encoder_bias"].data -= 100
    before = t["threshold"].clone()
    outcome = learner.loss(t, step)
    assert int(outcome.active.sum()) == 0
    assert torch.equal(t["threshold"], before)
    outcome.loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert float(t["decoder_bias"].grad.abs().sum()) > 0  # type: ignore[union-attr] # it has one


def test_planted_atoms_are_found_and_held_out_rows_have_k_active_latents(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    found = train(BatchTopK(k=2), flat.rows)
    assert float((flat.cosines(found.atoms) > 0.9).float().mean()) > 0.8
    code = found.encode(flat.rows[held_out(torch.arange(3000))])
    counts = (code != 0).sum(1).double()
    assert float(counts.mean()) == pytest.approx(2, rel=0.1)
    assert float(counts.std()) > 0.5
