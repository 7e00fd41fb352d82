"""Predictions at every strength, against recounting at single ones and `alpha_crit`'s own roots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.control.flips import flip
from salve_plugin.control.steps import Steps, prediction_steps
from salve_plugin.errors import InputError

Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def made(seed: int, classes: int, width: int, images: int) -> Problem:
    random = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    reach = randn(width).abs()
    reach[randn(width) > 1] = 0  # columns that the latent does not reach
    reach[0] = 0.5
    return randn(classes, width), randn(classes), reach, randn(images, width)


def recounted(problem: Problem, strength: float) -> Tensor:
    weight, bias, reach, x = problem
    predicted: Tensor = ((x * (1 - strength * reach).clamp(min=0)) @ weight.T + bias).argmax(1)
    return predicted


def firsts(steps: Steps) -> Tensor:
    first = torch.full((len(steps.start),), torch.inf, dtype=torch.float64)
    return first.scatter_reduce(0, steps.images, steps.strengths, "amin")


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    classes=st.sampled_from([2, 5, 90]),  # 90: classes are ruled out by bounds
    width=st.sampled_from([1, 7, 200]),
    shares=st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
def test_steps_are_what_recounting_at_any_strength_gives(
    seed: int, classes: int, width: int, shares: list[float]
) -> None:
    problem = made(seed, classes, width, images=6)
    limit = min(40.0, 1000 / float(problem[2].max()))
    steps = prediction_steps(*problem, limit)
    for share in shares:
        strength = limit * share**2
        near = (steps.strengths - strength).abs() < 1e-9 * (1 + strength)
        apart = torch.ones(6, dtype=torch.bool)
        apart[steps.images[near]] = False  # at a root two logits are equal
        assert torch.equal(steps.at(strength)[apart], recounted(problem, strength)[apart])


@pytest.mark.parametrize("classes", [10, 120])
def test_the_first_step_is_the_critical_strength_of_the_predicted_class(classes: int) -> None:
    problem = made(3, classes, 150, images=40)
    limit = 60.0
    steps = prediction_steps(*problem, limit)
    weight, bias, reach, x = problem
    values, _ = flip(weight, bias, reach, x, steps.start, None, "suppress")
    values[values > limit] = torch.inf
    torch.testing.assert_close(firsts(steps), values, rtol=1e-9, atol=0)


def test_a_class_may_come_back() -> None:
    # Two knots: class 1 leads between them only.
    weight = torch.tensor([[3.0, -2.0], [0.0, 0.0]])
    reach = torch.tensor([1.0, 0.25], dtype=torch.float64)
    x = torch.ones(1, 2)
    steps = prediction_steps(weight, torch.tensor([0.5, 0.0]), reach, x, 8.0)
    assert steps.start.tolist() == [0]
    assert steps.classes.tolist() == [1, 0]
    assert steps.strengths.tolist() == pytest.approx([0.6, 3.0])
    assert steps.at(0.59).tolist() == [0]
    assert steps.at(1.0).tolist() == [1]
    assert steps.at(8.0).tolist() == [0]


def test_steps_are_the_same_every_time() -> None:
    one, other = (prediction_steps(*made(5, 80, 90, 20), 30.0) for _ in range(2))
    assert torch.equal(one.strengths, other.strengths)
    assert torch.equal(one.classes, other.classes)


def test_strengths_beyond_the_limit_are_refused() -> None:
    problem = made(0, 3, 5, 2)
    with pytest.raises(InputError, match=r"limit 1e\+09 is to be above 0 and at most 1000"):
        prediction_steps(*problem, 1e9)
    with pytest.raises(InputError, match=r"strength 3\.0 is not between 0 and the limit 2\.0"):
        prediction_steps(*problem, 2.0).at(3.0)
