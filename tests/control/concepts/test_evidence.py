"""The area under the curve against its definition; interval and null against what they mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from salve_plugin.control.concepts.evidence import auc, evidence_of, over_images


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
        lambda pairs: 0 < sum(flag for _, flag in pairs) < len(pairs)
    )
)
def test_auc_is_that_of_scikit_learn_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(score) for score, _ in pairs], dtype=torch.float64)
    has = torch.tensor([flag for _, flag in pairs])
    assert auc(scores, has) == pytest.approx(roc_auc_score(has.numpy(), scores.numpy()))


def test_evidence_tells_a_real_concept_from_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    has = torch.arange(200) % 2 == 0
    noise = torch.randn(200, 21, generator=draw).double()
    permuted = torch.stack([has[torch.randperm(200, generator=draw)] for _ in range(20)], 1)
    real = evidence_of(noise[:, 0] + 3 * has, has, noise[:, 1:], permuted)
    assert real.auc_low < real.auc < real.auc_high
    assert real.is_real
    assert real.auc > 0.95
    assert real.correlation > 0.7
    assert (real.n_with, real.n_without) == (100, 100)
    chance = evidence_of(noise[:, 0], has, noise[:, 1:], permuted)
    assert not chance.is_real
    assert chance.null_auc < 0.65
    constant = evidence_of(torch.zeros(200).double(), has, noise[:, 1:], permuted)
    assert (constant.auc, constant.correlation) == (0.5, 0.0)


def test_an_image_scores_as_its_best_position() -> None:
    scores = torch.tensor([1.0, 5.0, -2.0, -3.0], dtype=torch.float64)
    assert over_images(scores, torch.tensor([0, 0, 1, 1]), 2).tolist() == [5, -2]
