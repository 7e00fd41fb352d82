"""Class separability against scipy's Jensen-Shannon distance, and its floor."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate import separability as module
from salve_plugin.validate.separability import separability


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_scipy(code: Tensor, labels: Tensor, bins: int) -> float:
    """Return the mean distance over pairs of classes, without a floor."""
    values, truth = code.double().numpy(), labels.numpy()
    edges = np.linspace(values.min(), values.max(), bins + 1)
    histograms = [np.histogram(values[truth == c], edges)[0] for c in np.unique(truth)]
    return float(np.mean([jensenshannon(a, b, 2) for a, b in combinations(histograms, 2)]))


@given(seed=st.integers(0, 100), bins=st.integers(2, 20))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_score_plus_floor_is_the_mean_distance_over_pairs(seed: int, bins: int) -> None:
    codes = draw(60, 3, seed=seed)
    labels = torch.arange(60) % 4 + 2  # labels need not start at 0
    codes[:, 0] += labels
    found = separability(codes, labels, bins=bins, seed=seed)
    expected = [by_scipy(codes[:, latent], labels, bins) for latent in range(3)]
    assert (found.scores + found.floors).tolist() == pytest.approx(expected, abs=1e-6)
    assert found.n_excluded == 0


def test_a_perfect_detector_of_one_class_scores_its_share_of_the_pairs() -> None:
    """2/C of the pairs contain the class; the others are equal and have no floor either."""
    labels = torch.arange(4000) % 5
    detector = (labels == 3).float()[:, None] * (1 + torch.rand(4000, 1))
    found = separability(detector, labels, bins=8)
    assert float(found.scores) == pytest.approx(2 / 5, abs=0.03)
    assert found.mean == float(found.scores)


def test_equal_distributions_score_nothing_though_their_histograms_differ() -> None:
    labels = torch.arange(300) % 3
    found = separability(draw(300, 200), labels)
    assert abs(found.mean) < 0.01
    assert float(found.floors.mean()) > 0.3


def test_the_floor_is_what_sampling_theory_expects() -> None:
    """4 n ln 2 times the divergence of n images each is chi-squared, with a mean of bins − 1."""
    codes = torch.rand(10_000, 20, generator=torch.Generator().manual_seed(0))
    found = separability(codes, torch.arange(10_000) % 2, bins=64)
    expected = math.sqrt(63 / (4 * 5000 * math.log(2)))
    assert float(found.floors.mean()) == pytest.approx(expected, rel=0.05)
    assert abs(found.mean) < 0.005


def test_disjoint_classes_score_nearly_one() -> None:
    labels = torch.arange(4000) % 2
    codes = labels[:, None] * 10 + torch.rand(4000, 1)
    assert separability(codes, labels).mean > 0.95


def test_constant_latents_are_left_out_and_counted() -> None:
    codes = draw(40, 4)
    codes[:, 1], codes[:, 3] = 0, 2.5
    labels = torch.arange(40) % 2
    found = separability(codes, labels)
    assert found.n_excluded == 2
    assert found.scores.isnan().tolist() == [False, True, False, True]
    assert found.mean == pytest.approx(float(separability(codes[:, [0, 2]], labels).mean))
    nothing = separability(torch.zeros(40, 2), labels)
    assert nothing.n_excluded == 2
    assert np.isnan(nothing.mean)


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_neither_the_order_of_latents_nor_a_stretch_changes_scores(seed: int) -> None:
    codes, labels = draw(50, 6, seed=seed), torch.arange(50) % 3
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    scores = separability(codes, labels).scores
    torch.testing.assert_close(separability(codes[:, order], labels).scores, scores[order])
    torch.testing.assert_close(separability(codes * 4, labels).scores, scores)


def test_a_class_with_one_image_is_left_out() -> None:
    codes, labels = draw(41, 2), torch.arange(41) % 2
    labels[40] = 7
    codes[40] = 100  # nor does it stretch the bins
    found = separability(codes, labels)
    torch.testing.assert_close(found.scores, separability(codes[:40], labels[:40]).scores)


def test_of_many_classes_pairs_are_drawn() -> None:
    labels = torch.arange(900) % 30  # 435 pairs
    codes = draw(900, 8)
    codes[:, 0] += labels
    found = separability(codes, labels, bins=8)
    exact = by_scipy(codes[:, 0], labels, 8)
    assert float(found.scores[0] + found.floors[0]) == pytest.approx(exact, abs=0.08)
    assert torch.equal(found.scores, separability(codes, labels, bins=8).scores)
    assert len(module._pairs(30, torch.Generator().manual_seed(0))) == module.PAIRS


def test_memory_is_bounded_with_few_images_of_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, codes = torch.arange(60) % 30, draw(60, 50)
    whole = separability(codes, labels)
    cells = []
    counted = torch.bincount

    def noted(values: Tensor, minlength: int = 0) -> Tensor:
        cells.append(minlength)
        return counted(values, minlength=minlength)

    monkeypatch.setattr(module, "_CODES", 2**15)
    monkeypatch.setattr(torch, "bincount", noted)
    parts = separability(codes, labels)
    assert max(cells) <= 2**15
    assert torch.equal(parts.scores, whole.scores)


def test_what_cannot_be_compared_is_refused() -> None:
    codes = draw(4, 2)
    for labels, complaint in (
        (torch.zeros(3, dtype=torch.int64), "4 codes, but 3 labels"),
        (torch.zeros(4, dtype=torch.int64), "1 classes have two images"),
        (torch.arange(4), "0 classes have two images"),
    ):
        with pytest.raises(InputError, match=complaint):
            separability(codes, labels)
    with pytest.raises(InputError, match="codes hold 1 NaN"):
        separability(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 0]))
    with pytest.raises(InputError, match="bins=1"):
        separability(codes, torch.tensor([0, 0, 1, 1]), bins=1)
