"""Automatic selection on the trained digits networks, judged by really edited networks."""

import pytest
import torch

from salve_plugin import (
    Activations,
    Dictionary,
    Features,
    HookedModel,
    choose,
    evaluate,
    fit,
    profile,
    record,
)
from salve_plugin.control.evaluate import change, evaluate_head
from salve_plugin.control.select import (
    edited_weight,
    random_control,
    strength_to_break,
    without_class,
)
from salve_plugin.demo import digits
from salve_plugin.errors import InputError

Learned = tuple[HookedModel, Dictionary, Features, Activations]


@pytest.fixture(scope="module")
def learned(digits_hooked: HookedModel, digits_train: digits.Split) -> Learned:
    """A network, a dictionary of its head input and the recording it comes from."""
    acts = record(digits_hooked, digits_train.batches(), progress=False, classes=digits.CLASSES)
    dictionary = fit(acts, "l1", seed=0, steps=200)
    return digits_hooked, dictionary, profile(dictionary, acts), acts


def test_the_chosen_edit_removes_the_class_and_little_else(
    learned: Learned, digits_test: digits.Split
) -> None:
    hooked, dictionary, features, acts = learned
    before = evaluate(hooked, digits_test.batches())
    choice = choose(hooked, dictionary, features, acts, "3", rows=[3])
    assert choice.met
    assert choice.change.target_after <= 0.05
    assert choice.edit.rows == (3,)
    with choice.edit.applied(hooked):
        after = evaluate(hooked, digits_test.batches())
    found = change(before, after, 3)
    assert found.target_before > 0.9
    assert found.target_after <= 0.1
    assert found.others_mean >= -0.01


def test_no_tried_candidate_is_better_by_the_stated_order(learned: Learned) -> None:
    hooked, dictionary, features, acts = learned
    choice = choose(hooked, dictionary, features, acts, 3, candidates=3)
    assert {features.dominant(3), *features.ranked(3, 3)} <= {
        one.edit.latent for one in choice.tried
    } | set(choice.unreachable)
    best = min(one.badness(0.05) for one in choice.tried)
    (taken,) = [one for one in choice.tried if one.edit == choice.edit][:1]
    assert taken.badness(0.05) == best
    assert (choice.latent, choice.strength) == (taken.edit.latent, taken.edit.gate.strength)
    weight, bias = hooked.unembed()
    again = change(
        evaluate_head(weight, bias, acts),
        evaluate_head(edited_weight(weight, choice.edit), bias, acts),
        3,
    )
    assert again == choice.change
    assert choice.to_json()["met"] is choice.met


def test_it_gives_the_same_edit_every_time(learned: Learned) -> None:
    hooked, dictionary, features, acts = learned
    choices = [choose(hooked, dictionary, features, acts, 5, candidates=2) for _ in range(2)]
    assert choices[0].edit == choices[1].edit


def test_an_aim_that_is_missed_is_reported_with_the_lowest_accuracy(learned: Learned) -> None:
    hooked, dictionary, features, acts = learned
    choice = choose(hooked, dictionary, features, acts, 2, rows=[2], max_target_accuracy=0.0)
    lowest = min(one.change.target_after for one in choice.tried)
    assert choice.change.target_after == lowest
    assert choice.met is (lowest == 0)


def test_rows_that_cannot_take_the_label_away_are_an_error(learned: Learned) -> None:
    hooked, dictionary, features, acts = learned
    with pytest.raises(InputError, match="edit other rows"):
        choose(hooked, dictionary, features, acts, 3, rows=[0])


def test_the_controls_are_what_they_say(learned: Learned) -> None:
    hooked, dictionary, features, acts = learned
    weight, _ = hooked.unembed()
    zeroed = without_class(weight, 3)
    assert not zeroed[3].any()
    assert torch.equal(zeroed[:3], weight[:3])
    assert weight[3].any()
    edit = choose(hooked, dictionary, features, acts, 3, rows=[3], candidates=1).edit
    control = random_control(edit, seed=1)
    assert float(control.gate.directions.norm()) == pytest.approx(1, abs=1e-6)
    assert control == random_control(edit, seed=1)
    assert control != random_control(edit, seed=2)
    assert (control.rows, control.gate.strength, control.dictionary_digest) == ((3,), 0.0, None)


def test_the_strength_to_break_breaks_that_share(learned: Learned) -> None:
    hooked, dictionary, features, acts = learned
    edit = choose(hooked, dictionary, features, acts, 3, rows=[3], candidates=1).edit
    strength = strength_to_break(hooked, edit, acts, 3, share=0.8)
    weight, bias = hooked.unembed()
    broken = evaluate_head(edited_weight(weight, edit.with_strength(strength)), bias, acts)
    assert float(broken.accuracy[3]) == pytest.approx(0.2, abs=0.02)


def test_bad_requests_are_named(learned: Learned) -> None:
    hooked, dictionary, features, acts = learned
    with pytest.raises(InputError, match="ten"):
        choose(hooked, dictionary, features, acts, "ten")
    with pytest.raises(InputError, match="max_target_accuracy"):
        choose(hooked, dictionary, features, acts, 3, max_target_accuracy=1.0)
