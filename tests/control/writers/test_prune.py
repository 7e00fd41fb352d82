"""Magnitude pruning: the neurons that a concept shifts most, relative to their spread."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_updates import draw
from scipy.stats import ttest_ind

from salve_plugin import Activations, HookedModel, prune
from salve_plugin.control.writers.prune import shift_over_spread
from salve_plugin.errors import InputError


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 30), st.integers(2, 30))
def test_it_is_the_t_statistic_without_the_counts(seed: int, with_it: int, without: int) -> None:
    x = draw(seed, with_it + without, 5)
    has = torch.arange(len(x)) < with_it
    expected = np.abs(ttest_ind(x[has].numpy(), x[~has].numpy()).statistic)
    expected = torch.from_numpy(expected) * (1 / with_it + 1 / without) ** 0.5
    torch.testing.assert_close(shift_over_spread(x, has), expected)
    # Neither the unit of a neuron nor which side is "with" matters.
    scaled = shift_over_spread(x * torch.tensor([1e-3, 1, 5, 1e4, 2]).double() + 7, ~has)
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=1e-9)


def test_neurons_that_never_change_come_last_and_pure_ones_first() -> None:
    x, has = draw(0, 10, 4), torch.arange(10) < 5
    x[:, 1] = 3.0
    x[:, 2] = has.double()
    order = shift_over_spread(x, has).argsort(descending=True).tolist()
    assert (order[0], order[-1]) == (2, 1)


@pytest.mark.parametrize("value", [0.1, 0.7, 1e4 + 0.1])
def test_a_constant_neuron_is_tied_to_nothing(value: float) -> None:
    x = torch.randn(21, 4, generator=torch.Generator().manual_seed(0)).double()
    x[:, 2] = value
    for count in range(2, 19):  # means of equal numbers are rounded, of each number otherwise
        assert float(shift_over_spread(x, torch.arange(21) < count)[2]) == 0


def test_the_planted_neuron_is_cut_off(tiny: HookedModel) -> None:
    x, has = draw(0, 60, 6), torch.arange(60) % 3 == 0
    x[:, 5] += 4 * has
    before = tiny.unembed()[0]
    edit = prune(tiny, (x, torch.arange(60) % 4), has, top=1, rows=[2, 0])
    assert edit.rows == (0, 2)
    with edit.applied(tiny):
        after = tiny.unembed()[0]
    expected = before.clone()
    expected[[0, 2], 5] = 0
    assert torch.equal(after, expected)


def test_a_recording_of_a_real_network(
    digits_hooked: HookedModel, digits_acts: Activations
) -> None:
    has = digits_acts.labels() == 3
    edit = prune(digits_hooked, digits_acts, has, top=4)
    with edit.applied(digits_hooked):
        weight = digits_hooked.unembed()[0]
    (columns,) = torch.where(weight.abs().sum(0) == 0)
    ties = shift_over_spread(digits_acts.tensor().double(), has)
    assert set(ties.topk(4).indices.tolist()) <= set(columns.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"has": torch.ones(8, dtype=torch.bool)}, "two at least"),
        ({"has": torch.arange(8) == 1}, "two at least"),
        ({"has": torch.arange(8)}, "truth value"),
        ({"has": torch.arange(7) < 3}, "each of 8 images"),
        ({"has": [True] * 8}, "truth value"),
        ({"top": 0}, "top 0"),
        ({"top": 6}, "top 6"),
        ({"rows": [4]}, r"rows \[4\] must be .* from 0 to 3"),
        ({"rows": [1, 1]}, r"rows \[1, 1\] must be at least one output, each once"),
        ({"rows": []}, r"rows \[\] must be"),
        ({"rows": [1, None]}, "rows must be output indices.* is None"),
        ({"rows": [1, "2"]}, "rows must be output indices.* is '2'"),
    ],
)
def test_bad_input_is_named(
    untyped: None, tiny: HookedModel, options: dict[str, object], message: str
) -> None:
    arguments = {"has": torch.arange(8) < 4, "top": 2, **options}
    with pytest.raises(InputError, match=message):
        prune(tiny, (draw(0, 8, 6), torch.arange(8) % 4), **arguments)  # type: ignore[arg-type] # what people may give
