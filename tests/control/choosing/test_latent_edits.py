"""Automatic selection on the trained digits networks, judged by really edited networks."""

from typing import Any

import pytest
import torch

from salve_plugin import (
    Activations,
    Choice,
    Dictionary,
    Features,
    HookedModel,
    SuppressClass,
    choose,
    evaluate,
    fit,
    profile,
    record,
)
from salve_plugin.control.change import change
from salve_plugin.control.choosing.latent_edits import (
    edited_weight,
    random_control,
    strength_to_break,
    without_class,
)
from salve_plugin.control.evaluate import evaluate_head
from salve_plugin.demo import digits
from salve_plugin.errors import InputError

Learned = tuple[HookedModel, Dictionary, Features, Activations]


@pytest.fixture(scope="module")
def learned(digits_hooked: HookedModel, digits_train: digits.Split) -> Learned:
    """A network, a dictionary of its head input and the recording it comes from."""
    acts = record(digits_hooked, digits_train.batches(), progress=False, classes=digits.CLASSES)
    dictionary = fit(acts, "l1", seed=0, steps=200)
    return digits_hooked, dictionary, profile(dictionary, acts), acts


def chosen(learned: Learned, **goal: Any) -> Choice:
    hooked, dictionary, features, acts = learned
    aim = SuppressClass(by="latents", **goal)
    return choose(hooked, aim, acts, dictionary=dictionary, features=features)


def test_the_chosen_edit_removes_the_class_and_little_else(
    learned: Learned, digits_test: digits.Split
) -> None:
    hooked = learned[0]
    before = evaluate(hooked, digits_test.batches())
    choice = chosen(learned, label="3", rows=[3])
    assert choice.met
    assert choice.chosen.effect >= 0.95
    assert choice.edit.rows == (3,)
    with choice.edit.applied(hooked):
        after = evaluate(hooked, digits_test.batches())
    difference = change(before, after, 3)
    assert difference.target_before > 0.9
    assert difference.target_after <= 0.1
    assert difference.others_mean >= -0.01


def test_figures_are_those_of_the_edited_head(learned: Learned) -> None:
    hooked, _, features, acts = learned
    choice = chosen(learned, label=3, tries=3, rows=None, max_harm=1.0)
    assert {features.dominant(3), *features.ranked(3, 3)} <= {
        one.edit.latent for one in choice.tried if one.edit.latents
    } | set(choice.unreachable)
    weight, bias = hooked.unembed()
    again = change(
        evaluate_head(weight, bias, acts),
        evaluate_head(edited_weight(weight, choice.edit), bias, acts),
        3,
    )
    assert 1 - again.target_after == choice.chosen.effect
    assert -again.others_worst == pytest.approx(choice.chosen.harm)
    assert choice.to_json()["met"] is choice.met


def test_it_gives_the_same_edit_every_time(learned: Learned) -> None:
    choices = [chosen(learned, label=5, tries=2) for _ in range(2)]
    assert choices[0].edit == choices[1].edit


def test_an_aim_that_is_missed_is_said_so_and_the_bound_holds(learned: Learned) -> None:
    choice = chosen(learned, label=2, rows=None, max_accuracy=0.0, max_harm=0.0)
    assert choice.chosen.harm <= 0
    assert choice.met is (choice.chosen.effect == 1)
    assert choice.met or "NOT MET" in choice.verdict


def test_rows_that_cannot_take_the_label_away_are_an_error(learned: Learned) -> None:
    with pytest.raises(InputError, match="edit other rows"):
        chosen(learned, label=3, rows=[0])


def test_the_controls_are_what_they_say(learned: Learned) -> None:
    weight, _ = learned[0].unembed()
    zeroed = without_class(weight, 3)
    assert not zeroed[3].any()
    assert torch.equal(zeroed[:3], weight[:3])
    assert weight[3].any()
    edit = chosen(learned, label=3, rows=[3], tries=1).edit
    control = random_control(edit, seed=1)
    assert float(control.gate.directions.norm()) == pytest.approx(1, abs=1e-6)
    assert control == random_control(edit, seed=1)
    assert control != random_control(edit, seed=2)
    assert (control.rows, control.gate.strength, control.dictionary_digest) == ((3,), 0.0, None)


def test_the_strength_to_break_breaks_that_share(learned: Learned) -> None:
    hooked, _, _, acts = learned
    edit = chosen(learned, label=3, rows=[3], tries=1).edit
    strength = strength_to_break(hooked, edit, acts, 3, share=0.8)
    weight, bias = hooked.unembed()
    broken = evaluate_head(edited_weight(weight, edit.with_strength(strength)), bias, acts)
    assert float(broken.accuracy[3]) == pytest.approx(0.2, abs=0.02)
