"""Interventions against a forward pass, controls at equal divergence, and a uniform null."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.control.solving import two_sided
from salve_plugin.validate.evidence.intervention import SCALES, at_divergence, intervention


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def kl(base: Tensor, after: Tensor) -> Tensor:
    """Return the mean KL(base || after) of logits, by torch."""
    base, after = two_sided(base).log_softmax(1), two_sided(after).log_softmax(1)
    return functional.kl_div(after, base, reduction="batchmean", log_target=True)


@pytest.mark.parametrize("classes", [1, 4])
def test_the_curve_is_what_the_classifier_says_of_scaled_contributions(classes: int) -> None:
    head = torch.nn.Linear(5, classes).double()
    x, codes, atom = draw(9, 5), draw(9, seed=1).abs(), draw(5, seed=2)
    with torch.no_grad():
        pulls = draw(6, 5, seed=3) @ head.weight.T
        result = intervention(head(x), codes, head.weight @ atom, pulls, 0)
        for scale, probability in zip(SCALES, result.curve, strict=True):
            logits = two_sided(head(x + (scale - 1) * codes[:, None] * atom))
            assert probability == pytest.approx(float(logits.softmax(1)[:, 0].mean()))
        ablated = head(x - codes[:, None] * atom)
        assert result.kl == pytest.approx(float(kl(head(x), ablated)))
        assert result.effect == pytest.approx(result.curve[0] - result.curve[2])


@given(
    seed=st.integers(0, 500), classes=st.integers(1, 6), scale=st.sampled_from([0.01, 1.0, 30.0]),
    target=st.sampled_from([1e-6, 0.01, 1.0, 5.0]),
)  # fmt: skip
@settings(deadline=None, max_examples=25, derandomize=True)
def test_controls_are_brought_to_the_same_divergence(
    seed: int, classes: int, scale: float, target: float
) -> None:
    """Also of sure predictions, where the divergence grows exponentially before it is linear."""
    logits = scale * draw(6, classes, seed=seed)
    steps = draw(4, 6, classes, seed=seed + 1)
    factors = at_divergence(logits, lambda t: logits - t[:, None, None] * steps, 4, target)
    for factor, step in zip(factors, steps, strict=True):
        assert float(kl(logits, logits - factor * step)) == pytest.approx(target, rel=0.01)


def test_what_moves_no_prediction_has_no_effect_and_no_significance() -> None:
    logits, controls = draw(5, 3), draw(7, 3, seed=1)
    off = intervention(logits, torch.zeros(5).double(), draw(3), controls, 1)
    assert (off.kl, off.effect, off.effect_p) == (0, 0, 1)
    # A control that adds the same to all classes does not, however large, and is passed by.
    same = torch.ones(7, 3).double()
    result = intervention(logits, torch.ones(5).double(), draw(3), same, 1)
    assert result.effect_p == (1 / 8 if result.effect < 0 else 1)


def test_a_latent_that_carries_its_class_lowers_it_more_than_others_at_equal_kl() -> None:
    logits = functional.one_hot(torch.zeros(8).long(), 5).double() * 2
    pull = functional.one_hot(torch.tensor(0), 5).double()
    result = intervention(logits, torch.ones(8).double(), 3 * pull, draw(19, 5), 0)
    assert result.effect < -0.2
    assert result.effect_p == 0.05
    assert list(result.curve) == sorted(result.curve)


def test_a_random_latent_is_significant_as_often_as_it_says() -> None:
    """Its own atom is drawn as those of the controls are: every rank among them is as likely."""
    p = []
    for seed in range(300):
        atoms = draw(20, 4, seed=seed)
        logits, codes = draw(4, 4, seed=1000 + seed), draw(4, seed=2000 + seed).abs()
        p.append(intervention(logits, codes, atoms[0], atoms[1:], 2).effect_p)
    shares = torch.tensor(p)
    assert float((shares <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.03)
    assert float((shares <= 0.5).double().mean()) == pytest.approx(0.5, abs=0.08)
