"""The discriminant against scikit-learn's, and against what its definition says."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from salve_plugin.control.choosing.balanced_head import nuisance_head


def test_without_effects_it_is_the_linear_discriminant_of_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    x = torch.randn(600, 6, generator=draw).double() @ torch.randn(6, 6, generator=draw).double()
    x += torch.randn(3, 6, generator=draw).double()[labels] * 2
    weight, bias = nuisance_head(
        x, labels, torch.ones(600).double(), torch.zeros(6, 1).double(), 0.0, shrinkage=0.0
    )
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3)
    reference.fit(x.numpy(), labels.numpy())
    ours = (x @ weight.T + bias).softmax(1)
    expected = torch.from_numpy(reference.predict_proba(x.numpy()))
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=5e-3)  # n against n - classes


@pytest.mark.parametrize("weight", [10.0, 1e6])
def test_decisions_turn_away_from_the_effect(weight: float) -> None:
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(400) % 2
    x = torch.randn(400, 4, generator=draw).double()
    x[:, 0] += 2 * labels
    x[:, 1] += 2 * labels
    effect = torch.tensor([[1.0], [0], [0], [0]], dtype=torch.float64)
    ones = torch.ones(400).double()
    plain, _ = nuisance_head(x, labels, ones, effect, 0.0)
    turned, _ = nuisance_head(x, labels, ones, effect, weight)
    margin_plain, margin_turned = plain[1] - plain[0], turned[1] - turned[0]
    # Along the effect the margin moves 1 / (1 + weight) times as far as before, roughly.
    assert abs(float(margin_turned[0])) < 0.15 * abs(float(margin_plain[0]))
    assert float(margin_turned[1]) > 0.7 * float(margin_plain[1])
