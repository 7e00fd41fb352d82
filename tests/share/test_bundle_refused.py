"""What makes no bundle: members or a composition that do not belong together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_artifacts import (
    WEIGHT,
    small_bundle,
    small_edit,
    small_model,
)
from torch import nn

from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.errors import (
    InputError,
    UnsupportedModelError,
)
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.composition import Composition

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_members_must_be_different_edits_of_one_base_with_plain_names() -> None:
    edit = small_edit()
    one, other_data = EditArtifact(edit), EditArtifact(edit, data={"n": 1})
    base = Base({"architecture": "Other"}, edit.base.tensors)
    elsewhere = Base(edit.base.description, {"fc.weight": Fingerprint.of(WEIGHT + 1)})
    model = small_model()
    wrong: list[tuple[dict[str, EditArtifact], str]] = [
        ({}, "1 to 64 members"),
        ({f"m{i}": one for i in range(65)}, "1 to 64 members"),
        ({"a": one, "b": other_data}, "'a' and 'b' are the same edit"),
        ({"a": one, "b": EditArtifact(replace(edit, base=base))}, "different bases"),
        ({"a": one, "b": EditArtifact(replace(edit, base=elsewhere))}, "different bases"),
        *(({name: one}, "not a plain name") for name in ("", "A", "../a", "a/b", ".a", "é", "a b")),
        ({"x" * 65: one}, "not a plain name"),
    ]
    for members, message in wrong:
        with pytest.raises(InputError, match=message):
            EditBundle.of(model, members)


def test_an_evaluation_must_be_before_and_after() -> None:
    with pytest.raises(InputError, match="same measures"):
        EditBundle.of(
            small_model(), {"a": EditArtifact(small_edit())}, evaluation={"before": {"a": 1.0}}
        )


def test_members_that_carry_different_pristine_rows_contradict_each_other() -> None:
    edit = small_edit()
    one = EditArtifact(edit, pristine={"fc.weight": WEIGHT[1:]})
    liar = EditArtifact(replace(edit, rows=(2,)), pristine={"fc.weight": WEIGHT[:1]})
    with pytest.raises(InputError, match=r"other pristine rows of 'fc\.weight'"):
        EditBundle.of(small_model(), {"one": one, "two": liar})


def test_one_weight_by_two_names_is_refused() -> None:
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(4, 3))
    model.add_module("again", nn.Linear(4, 3))
    model.get_submodule("again").weight = model.get_parameter("fc.weight")
    with torch.no_grad():
        model.get_parameter("fc.weight").copy_(WEIGHT)
    edit = small_edit()
    again = Base(edit.base.description, {"again.weight": edit.base.tensors["fc.weight"]})
    site = replace(edit.site, module="again", readers=("again",))
    targets = (replace(edit.targets[0], weight="again.weight"),)
    renamed = replace(edit, base=again, site=site, targets=targets)
    members = {"a": EditArtifact(edit), "b": EditArtifact(renamed)}
    with pytest.raises(UnsupportedModelError, match="tied"):
        EditBundle.of(model, members)


def changed_composition(bundle: EditBundle, **fields: Any) -> Composition:
    said = replace(bundle.composition.tensors["fc.weight"], **fields)
    return replace(bundle.composition, tensors={"fc.weight": said})


def test_a_composition_that_does_not_follow_from_the_members_is_refused() -> None:
    bundle = small_bundle()
    right = bundle.composition
    other = Fingerprint.of(WEIGHT + 1)
    wrong = [
        (Composition({}, right.overlaps), "members touch"),
        (changed_composition(bundle, before=other), "made for another"),
        (changed_composition(bundle, rows=(0, 1, 2)), "contradicts itself"),
        (changed_composition(bundle, after="0" * 64), "contradicts itself"),
        (changed_composition(bundle, after="0" * 64, rows_after="0" * 64), "the members make"),
        (replace(right, overlaps=right.overlaps[1:]), "of overlaps"),
        (replace(right, overlaps=right.overlaps[::-1]), "of overlaps"),
        (
            replace(right, overlaps=(replace(right.overlaps[0], rows=None), *right.overlaps[1:])),
            "of overlaps",
        ),
    ]
    for composition, message in wrong:
        with pytest.raises(InputError, match=message):
            EditBundle(bundle.members, composition)
