"""The area under the curve against its definition; interval and null against what they mean."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from salve_plugin.control.concepts.evidence import _resamples, auc, evidence_of, over_images


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
    alone = torch.arange(200)
    real = evidence_of(noise[:, 0] + 3 * has, has, noise[:, 1:], permuted, alone)
    assert real.auc_low < real.auc < real.auc_high
    assert real.is_real
    assert real.auc > 0.95
    assert real.correlation > 0.7
    assert (real.n_with, real.n_without) == (100, 100)
    chance = evidence_of(noise[:, 0], has, noise[:, 1:], permuted, alone)
    assert not chance.is_real
    assert chance.null_auc < 0.65
    constant = evidence_of(torch.zeros(200).double(), has, noise[:, 1:], permuted, alone)
    assert (constant.auc, constant.correlation) == (0.5, 0.0)


def test_copies_of_an_image_in_its_group_make_nothing_surer() -> None:
    draw = torch.Generator().manual_seed(0)
    has = torch.arange(30) % 3 == 0
    scores = torch.randn(30, 2, generator=draw).double() + has[:, None]
    alone = torch.arange(30)
    once = evidence_of(scores[:, 0], has, scores[:, 1:], has[:, None], alone)
    copied = (part.repeat_interleave(8, 0) for part in (scores, has, alone))
    many, flags, groups = copied
    grouped = evidence_of(many[:, 0], flags, many[:, 1:], flags[:, None], groups)
    assert (grouped.auc_low, grouped.auc_high) == pytest.approx((once.auc_low, once.auc_high))
    apart = evidence_of(many[:, 0], flags, many[:, 1:], flags[:, None], torch.arange(240))
    assert apart.auc_high - apart.auc_low < 0.5 * (once.auc_high - once.auc_low)


def test_pairs_are_drawn_as_pairs_and_groups_of_one_kind_never_alone() -> None:
    has = torch.tensor([True, False, True, False, True, True])
    groups = torch.tensor([0, 0, 1, 1, 2, 3])
    for images in islice(_resamples(has.numpy(), groups.numpy(), 0), 200):
        counts = np.bincount(images, minlength=6)
        assert counts[0] == counts[1]
        assert counts[2] == counts[3]
        assert counts[1] + counts[3] > 0


def test_an_image_scores_as_its_best_position() -> None:
    scores = torch.tensor([1.0, 5.0, -2.0, -3.0], dtype=torch.float64)
    assert over_images(scores, torch.tensor([0, 0, 1, 1]), 2).tolist() == [5, -2]
