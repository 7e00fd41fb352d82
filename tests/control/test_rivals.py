"""Row sets: every claimed number is recounted by brute force, and a rival is found where needed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.control.change import change
from salve_plugin.control.evaluate import evaluate_head
from salve_plugin.control.operators import scaled_weight
from salve_plugin.control.rivals import (
    MAX_LOSS,
    MAX_ROWS,
    SHARES,
    RowSet,
    rival_rows,
    strengths_by_closure,
)
from salve_plugin.errors import InputError


def _problem(seed: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 12, generator=draw)
    bias = torch.randn(6, generator=draw) / 4
    inputs = torch.randn(90, 12, generator=draw).relu()
    labels = torch.addmm(bias, inputs, weight.T).argmax(1)
    direction = torch.randn(12, generator=draw)
    return weight, bias, direction / direction.norm(), inputs, labels


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 10_000))
def test_the_numbers_of_a_row_set_are_those_of_the_really_edited_head(seed: int) -> None:
    weight, bias, direction, inputs, labels = _problem(seed)
    label = int(labels[0])
    if int((torch.bincount(labels, minlength=6) > 0).sum()) < 2:
        return
    found = rival_rows(weight, bias, direction, inputs, labels, label)
    edited = scaled_weight(weight, direction, found.strength, rows=found.rows)
    before, after = (evaluate_head(each, bias, (inputs, labels)) for each in (weight, edited))
    effect = change(before, after, label)
    assert effect.target_after == found.target_accuracy
    assert abs(max(0.0, -effect.others_mean) - found.others_loss) < 1e-12
    assert found.rows[0] == label
    assert len(found.rows) <= MAX_ROWS


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 10_000))
def test_a_row_set_is_never_worse_than_the_own_row_at_the_strengths_tried(seed: int) -> None:
    weight, bias, direction, inputs, labels = _problem(seed)
    label = int(labels[0])
    found = rival_rows(weight, bias, direction, inputs, labels, label)
    alone = [
        float(
            evaluate_head(
                scaled_weight(weight, direction, strength, rows=[label]), bias, (inputs, labels)
            ).accuracy[label]
        )
        for strength in strengths_by_closure(direction)
    ]
    assert max(found.target_accuracy, 0.01) <= max(min(alone), 0.01)


def test_a_rival_is_added_where_the_own_row_cannot_be_enough() -> None:
    # Class 0 wins with feature 0. Fully suppressed its logit is 0, still above its rivals at -1;
    # but feature 0 is also what holds class 1 down, so suppressing it there lifts class 1 to +1.
    weight = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [-2.0, 0.0, 3.0]])
    bias = torch.zeros(3)
    direction = torch.tensor([1.0, 0.0, 0.0])
    inputs = torch.tensor([[1.0, 1.0, 0.0]] * 5 + [[0.0, 0.0, 1.0]] * 5)
    labels = torch.tensor([0] * 5 + [2] * 5)
    alone = scaled_weight(weight, direction, 100.0, rows=[0])
    assert evaluate_head(alone, bias, (inputs, labels)).accuracy[0] == 1
    found = rival_rows(weight, bias, direction, inputs, labels, 0)
    assert found.rows == (0, 1)
    assert (found.target_accuracy, found.others_loss) == (0.0, 0.0)
    # Logits of the class's images are then (0, 1, -2): it trails by 1.
    assert found.margin == -1


def test_rows_can_be_found_at_a_given_strength_only() -> None:
    weight, bias, direction, inputs, labels = _problem(3)
    label = int(labels[0])
    for strength in (0.0, 0.7, 40.0):
        found = rival_rows(weight, bias, direction, inputs, labels, label, [strength])
        assert found.strength == strength
        edited = scaled_weight(weight, direction, strength, rows=found.rows)
        after = evaluate_head(edited, bias, (inputs, labels))
        assert float(after.accuracy[label]) == found.target_accuracy


def test_a_class_without_images_is_refused() -> None:
    weight, bias, direction, inputs, labels = _problem(3)
    labels[labels == 2] = 1
    with pytest.raises(InputError, match="class 2 has no recorded images"):
        rival_rows(weight, bias, direction, inputs, labels, 2)


def test_a_row_that_costs_the_others_too_much_is_not_added() -> None:
    # As above, but class 1's images need its feature-0 evidence kept: they are labelled 1 only
    # because feature 0 is negative evidence for class 0.
    weight = torch.tensor([[2.0, 0.0], [-2.0, 1.0]])
    inputs = torch.tensor([[1.0, 1.0]] * 5 + [[-1.0, -1.0]] * 5)
    labels = torch.tensor([0] * 5 + [1] * 5)
    found = rival_rows(
        weight, torch.tensor([1.5, 0.0]), torch.tensor([1.0, 0.0]), inputs, labels, 0
    )
    assert found.rows == (0,)
    assert found.others_loss > MAX_LOSS or found.target_accuracy == 1


def test_strengths_close_the_stated_shares_of_the_columns() -> None:
    direction = torch.arange(1.0, 11.0)
    direction /= direction.norm()
    strengths = strengths_by_closure(direction)
    closed = [int((1 - a * direction.double().abs() <= 1e-12).sum()) for a in strengths]
    assert closed == [round(10 * share) for share in SHARES]


def test_columns_that_the_direction_does_not_touch_set_no_strength() -> None:
    assert strengths_by_closure(torch.tensor([0.0, 0.6, 0.8])) == [
        1 / torch.tensor(0.8, dtype=torch.float32).double().item(),
        1 / torch.tensor(0.6, dtype=torch.float32).double().item(),
    ]


def test_a_row_set_is_a_value() -> None:
    assert RowSet((1, 2), 3.0, 0.0, 0.0, -1.0) == RowSet((1, 2), 3.0, 0.0, 0.0, -1.0)
