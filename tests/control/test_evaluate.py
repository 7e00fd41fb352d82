"""Accuracy by class, by hand and on real networks."""

import math

import pytest
import torch
from torch import Tensor, nn

from salve_plugin import Activations, HookedModel, evaluate
from salve_plugin.control.change import change
from salve_plugin.control.evaluate import Evaluation, evaluate_head, evaluate_heads
from salve_plugin.demo import digits
from salve_plugin.errors import InputError


def test_the_confusion_is_counted_by_true_and_predicted_class() -> None:
    x = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]])
    found = evaluate(nn.Identity(), [(x[:2], torch.tensor([0, 0])), (x[2:], torch.tensor([1, 1]))])
    assert found.confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert found.count.tolist() == [2, 2, 0]
    assert found.accuracy[:2].tolist() == [0.5, 0.5]
    assert math.isnan(found.accuracy[2])
    assert found.overall == 0.5
    assert found.to_json()["accuracy"] == [0.5, 0.5, None]


def test_the_head_on_recorded_inputs_agrees_with_the_whole_network(
    digits_hooked: HookedModel, digits_test: digits.Split, digits_acts: Activations
) -> None:
    whole = evaluate(digits_hooked, digits_test.batches(100))
    weight, bias = digits_hooked.unembed()
    assert torch.equal(whole.confusion, evaluate_head(weight, bias, digits_acts).confusion)
    rows = (digits_acts.tensor(), digits_acts.labels())
    both = evaluate_heads([weight, -weight], bias, rows)
    assert torch.equal(both[0].confusion, whole.confusion)
    assert both[1].overall < 0.5 < 0.95 < both[0].overall
    assert int(whole.count.sum()) == 360


def test_training_modes_are_restored_even_on_error() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    model[1].eval()
    x, labels = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.ones(8).long()
    first = evaluate(model, [(x, labels)])
    assert torch.equal(first.confusion, evaluate(model, [(x, labels)]).confusion)
    with pytest.raises(InputError):
        evaluate(model, [(x, labels + 1)])
    assert [module.training for module in model] == [True, False, True]


def test_a_change_compares_the_class_with_all_others() -> None:
    before = Evaluation(torch.tensor([[8, 2, 0], [0, 10, 0], [1, 1, 8]]))
    after = Evaluation(torch.tensor([[0, 5, 5], [0, 9, 1], [0, 4, 6]]))
    found = change(before, after, 0)
    assert (found.target_before, found.target_after) == (0.8, 0.0)
    assert found.others_mean == pytest.approx(-0.15)
    assert found.others_worst == pytest.approx(-0.2)
    assert found.worst_label == 2


def test_classes_without_images_are_left_out_of_a_change() -> None:
    before = Evaluation(torch.tensor([[4, 0, 0], [0, 0, 0], [0, 0, 4]]))
    after = Evaluation(torch.tensor([[0, 4, 0], [0, 0, 0], [0, 2, 2]]))
    assert change(before, after, 0).others_mean == -0.5
    with pytest.raises(InputError, match="class 1"):
        change(before, after, 1)
    with pytest.raises(InputError, match="different images"):
        change(before, Evaluation(after.confusion + 1), 0)


def test_what_cannot_be_evaluated_is_refused() -> None:
    one = torch.eye(2)
    with pytest.raises(InputError):
        evaluate(nn.Identity(), [])
    with pytest.raises(InputError, match="NaN"):
        evaluate(nn.Identity(), [(one * math.nan, torch.tensor([0, 1]))])
    with pytest.raises(InputError, match="expected logits"):
        evaluate(nn.Flatten(0), [(one, torch.tensor([0, 1]))])
    with pytest.raises(InputError, match="classes 0 to 1"):
        evaluate_head(one, torch.zeros(2), (one, torch.tensor([0, 2])))
    with pytest.raises(InputError, match="do not fit"):
        evaluate_head(torch.ones(2, 3), torch.zeros(2), (one, torch.tensor([0, 1])))
    with pytest.raises(InputError, match="2 inputs, but 1 labels"):
        evaluate_head(one, torch.zeros(2), (one, torch.tensor([0])))
    with pytest.raises(InputError, match="no images"):
        evaluate_head(one, torch.zeros(2), (one[:0], torch.tensor([], dtype=torch.int64)))


def test_labels_of_few_bits_are_counted_as_what_they_are() -> None:
    x = torch.zeros(4, 2)
    labels = torch.tensor([200, 201, 250, 7])
    for kind in (torch.int64, torch.int16, torch.uint8):
        counted = evaluate_head(torch.zeros(300, 2), torch.zeros(300), (x, labels.to(kind)))
        assert counted.count.nonzero()[:, 0].tolist() == [7, 200, 201, 250]


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(4, 1, dtype=torch.int64)])
def test_labels_that_are_no_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(InputError, match="one for each of 4 inputs"):
        evaluate_head(torch.ones(3, 2), torch.zeros(3), (torch.zeros(4, 2), labels))
