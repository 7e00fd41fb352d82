"""An assessment in an artifact: it is of this edit on its base, and the card tells it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_artifacts import altered, small_artifact, small_assessment, small_bundle, small_edit

import salve_plugin as salve
from salve_plugin import EditArtifact
from salve_plugin.control.assessment.outcomes import ParameterBudget
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.card_assessment import assessment_section


def test_it_comes_back_as_it_was_and_gives_the_measures(tmp_path: Path) -> None:
    artifact = EditArtifact(small_edit(), assessment=small_assessment())
    loaded = EditArtifact.from_pretrained(artifact.save_pretrained(tmp_path))
    assert loaded.assessment == artifact.assessment
    assert loaded.digest == artifact.digest
    assert loaded.evaluation == {
        "before": {"accuracy": 0.75, "target accuracy": 1.0, "others": 0.5},
        "after": {"accuracy": 0.0, "target accuracy": 0.0, "others": 0.0},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit": small_edit().with_strength(2.0)}, "of edit"),
        ({"labels": ("a", "b", "c")}, "among the labels"),
        ({"evaluation": {"before": {"accuracy": 0.75}, "after": {"accuracy": 0.5}}}, "accuracy af"),
    ],
)
def test_what_contradicts_it_is_refused(change: dict[str, Any], message: str) -> None:
    artifact = EditArtifact(small_edit(), assessment=small_assessment())
    with pytest.raises(InputError, match=message):
        replace(artifact, **change)


def test_it_is_of_the_edits_base_and_of_what_the_edit_touches() -> None:
    assessment, edit = small_assessment(), small_edit()
    known = replace(edit, base=replace(edit.base, state="23" * 32))
    with pytest.raises(InputError, match="without other edits on it"):
        EditArtifact(known, assessment=replace(assessment, edit=known.digest))
    budget = replace(assessment.budget, parameters=(ParameterBudget(1, 1.0, "fc.bias", 1, None),))
    with pytest.raises(InputError, match="the edit touches"):
        EditArtifact(edit, assessment=replace(assessment, budget=budget))
    fewer = altered(edit, rows=(0,))
    assert EditArtifact(fewer, assessment=replace(assessment, edit=fewer.digest)).evaluation


def test_names_of_classes_cannot_break_out_of_the_card() -> None:
    nasty = "x|y`<script>[a](b)"
    base = small_assessment()
    named = replace(base, classes=(replace(base.classes[0], name=nasty), base.classes[1]))
    text = assessment_section(named.to_json())
    assert "<script>" not in text
    assert "`<" not in text
    assert text.count("[a](") == text.count("\\[a](") > 0
    assert assessment_section(None) == ""


def test_a_card_lists_twenty_classes_and_says_how_many_it_leaves_out() -> None:
    base = small_assessment()
    more = [
        replace(base.classes[1], label=label, count=0, accuracy=None, probability=None, name=None)
        for label in range(3, 60)
    ]
    text = assessment_section(replace(base, classes=(*base.classes, *more)).to_json())
    assert "And 39 classes more, in `edit_config.json`." in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == 2 + 20 + 2 + 3


def test_a_model_with_other_edits_is_no_base(tmp_path: Path) -> None:
    site = salve.Site("unembed.hook_in", "fc", "in", "pooled", 4, readers=("fc",))
    from small_artifacts import small_model

    hooked = salve.HookedModel(
        small_model(), [site], attribution_site=None, description={"input_size": [4]}
    )
    gate = salve.Gate(torch.tensor([[1.0, 0, 0, 0]]), 1.0)
    first, second = (salve.edit_at(hooked, site, gate, rows=[row]) for row in (0, 1))
    data = [(torch.eye(4), torch.tensor([0, 1, 2, 0]))]
    alone = salve.assess(hooked, second, data, target=1)
    saved = EditArtifact.of(hooked, second, assessment=alone).save_pretrained(tmp_path)
    assert EditArtifact.from_pretrained(saved).assessment == alone
    with first.applied(hooked):
        both = salve.assess(hooked, second, data, target=1)
    with pytest.raises(InputError, match="without other edits"):
        EditArtifact.of(hooked, second, assessment=both)


def test_a_member_of_a_bundle_keeps_its_own(tmp_path: Path) -> None:
    bundle = small_bundle()
    loaded = salve.EditBundle.from_pretrained(bundle.save_pretrained(tmp_path))
    assert loaded.members["rows"].assessment == small_artifact().assessment


def test_one_that_lists_too_many_classes_is_refused() -> None:
    base = small_assessment()
    more = [
        replace(base.classes[1], label=label, count=0, accuracy=None, probability=None)
        for label in range(3, 10_003)
    ]
    with pytest.raises(InputError, match="at most 10000 classes"):
        replace(base, classes=(*base.classes, *more))
    with pytest.raises((ArtifactError, InputError)):
        salve.Assessment.from_json({**base.to_json(), "classes": []})
