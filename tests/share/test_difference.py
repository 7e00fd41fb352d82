"""Differences of artifacts: nothing exactly when the digests agree, else all that is different."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import WEIGHT, altered, small_edit, with_edit
from torch import nn

import salve_plugin as salve
from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.difference import ABSENT, Difference


def paths(found: Difference) -> list[tuple[str | int, ...]]:
    return [field.path for field in found.fields]


def test_an_artifact_does_not_differ_from_its_copy_in_a_folder(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    found = tiny.diff(EditArtifact.from_pretrained(tiny.save_pretrained(tmp_path)))
    assert not found
    assert found == Difference(same_edit=True, same_base=True)
    assert str(found) == "The artifacts do not differ."


def test_a_strength_is_named_with_both_values(tiny: EditArtifact) -> None:
    tiny = replace(tiny, assessment=None)  # which names the edit by its digest
    found = tiny.diff(with_edit(tiny, altered(tiny.edit, strength=0.5)))
    assert found
    assert (found.same_edit, found.same_base, found.tensors) == (False, True, ())
    assert [(field.path, field.ours, field.theirs) for field in found.fields] == [
        (("edit", "operator", "strength"), 1.5, 0.5)
    ]
    assert (
        str(found) == "Another edit of the same base.\n$['edit']['operator']['strength']: 1.5 | 0.5"
    )


def test_numbers_of_another_kind_differ_as_their_digests_do(tiny: EditArtifact) -> None:
    other = replace(tiny, data={**(tiny.data or {}), "count": 4.0})
    assert other.digest != tiny.digest
    assert paths(tiny.diff(other)) == [("data", "count")]


def test_what_one_side_lacks_is_absent_and_null_is_a_value(tiny: EditArtifact) -> None:
    tiny = replace(tiny, alpha_crit=None)  # which names a class that the shorter labels lack
    other = replace(tiny, data={"name": None, "count": 4}, labels=("a", "ü|x"))
    found = tiny.diff(other)
    assert [(field.path, field.ours, field.theirs) for field in found.fields] == [
        (("data", "name"), "four images", None),
        (("data", "split"), None, ABSENT),
        (("labels", 2), "<b>", ABSENT),
    ]
    assert [sorted(field.to_json()) for field in found.fields] == [
        ["ours", "path", "theirs"], ["ours", "path"], ["ours", "path"]
    ]  # fmt: skip
    assert found.same_edit
    assert "$['labels'][2]: '<b>' | (absent)" in str(found)


def test_tensors_are_compared_by_presence_shape_and_elements(
    tiny: EditArtifact, tiny_crit: AlphaCrit
) -> None:
    rows = WEIGHT[1:].clone()
    rows[0, 0] += 0.5
    rows[1, 2] -= 0.25
    values = tiny_crit.values.clone()
    values[0] = torch.inf
    other = replace(
        tiny,
        pristine={"fc.weight": rows},
        alpha_crit=replace(tiny_crit, values=values),
    )
    found = tiny.diff(other)
    crit, pristine = found.tensors
    assert (crit.name, crit.elements, crit.largest) == ("alpha_crit.values", 1, float("inf"))
    assert (pristine.name, pristine.elements, pristine.largest) == ("pristine.fc.weight", 2, 0.5)
    assert "pristine.fc.weight: 2 elements of F32[2, 4] differ, by at most 0.5" in str(found)
    json.dumps(found.to_json(), allow_nan=False)

    missing = tiny.diff(replace(tiny, pristine=None))
    assert [(each.name, each.ours, each.theirs) for each in missing.tensors] == [
        ("pristine.fc.weight", "F32[2, 4]", None)
    ]
    longer = altered(tiny.edit, direction=tiny.edit.gate.directions[0].double())
    (direction,) = tiny.diff(with_edit(tiny, longer)).tensors
    assert (direction.ours, direction.theirs) == ("F32[1, 4]", "F64[1, 4]")
    assert direction.elements is None


def test_a_zero_of_the_other_sign_differs_by_nothing_but_differs(tiny: EditArtifact) -> None:
    zeros = [torch.full((2, 4), sign) for sign in (0.0, -0.0)]
    tiny, other = (replace(tiny, pristine={"fc.weight": rows}) for rows in zeros)
    assert other.digest != tiny.digest
    (found,) = tiny.diff(other).tensors
    assert (found.elements, found.largest) == (8, 0.0)


def test_long_texts_are_shown_where_they_differ(tiny: EditArtifact) -> None:
    ours, theirs = (replace(tiny, data={"command": "x" * 90 + end}) for end in ("1", "2"))
    shown = str(ours.diff(theirs)).splitlines()[1]
    assert shown.endswith("xx1' | …" + "x" * 20 + "2'")
    assert len(shown) < 200


@pytest.mark.usefixtures("untyped")
def test_what_is_no_artifact_is_refused(tiny: EditArtifact) -> None:
    with pytest.raises(InputError, match="no artifact of an edit"):
        tiny.diff("no-threes")  # type: ignore[arg-type] # a path is none


def test_another_base_is_told_from_another_edit(tiny: EditArtifact) -> None:
    for base in (
        Base({"architecture": "Other"}, tiny.edit.base.tensors),
        Base(tiny.edit.base.description, {"fc.weight": Fingerprint.of(WEIGHT + 1)}),
    ):
        found = tiny.diff(with_edit(tiny, replace(tiny.edit, base=base)))
        assert (found.same_edit, found.same_base) == (False, False)
        assert ("edit", "base") in {path[:2] for path in paths(found)}


def test_pictures_are_no_part_of_the_identity_and_of_the_difference(tiny: EditArtifact) -> None:
    assert not tiny.diff(replace(tiny, pictures=None))


def test_edits_of_a_real_network_are_compared(digits_network: nn.Module) -> None:
    hooked = salve.attach(digits_network)
    site = hooked.site("unembed.hook_in")
    atoms = nn.functional.normalize(torch.randn(2, site.width), dim=1)
    edits = [
        salve.edit_at(
            hooked,
            site,
            salve.Gate(atoms[latent : latent + 1], 1.0),
            provenance=salve.Provenance("latents", (latent,)),
        )
        for latent in range(2)
    ]
    one, other = (EditArtifact.of(hooked, edit) for edit in edits)
    found = one.diff(other)
    assert paths(found) == [("edit", "provenance", "latents", 0)]
    (direction,) = found.tensors
    assert direction.elements == site.width
    assert direction.largest == float((atoms[0].double() - atoms[1].double()).abs().max())


def base_artifact() -> EditArtifact:
    return EditArtifact(small_edit(), pristine={"fc.weight": WEIGHT[1:]})


def edited(**fields: Any) -> Callable[[EditArtifact], EditArtifact]:
    return lambda artifact: with_edit(artifact, altered(artifact.edit, **fields))


def parts(**fields: Any) -> Callable[[EditArtifact], EditArtifact]:
    return lambda artifact: replace(artifact, **fields)


CHANGES: list[Callable[[EditArtifact], EditArtifact]] = [
    edited(strength=1.5),
    edited(strength=2.0),
    edited(latent=6),
    edited(mode="enhance"),
    edited(dictionary_digest="cd" * 32),
    edited(dictionary_digest=None),
    edited(direction=torch.tensor([0.6, 0.0, -0.8, 0.0]).double()),
    edited(base=Base({"architecture": 1}, {"fc.weight": Fingerprint.of(WEIGHT)})),
    edited(base=Base({"architecture": True}, {"fc.weight": Fingerprint.of(WEIGHT)})),
    parts(pristine=None),
    parts(pristine={"fc.weight": -WEIGHT[1:]}),
    parts(data={"n": 1}),
    parts(data={"n": 1.0}),
    parts(data={"n": True}),
    parts(labels=()),
    parts(labels=("a", "b")),
    parts(labels=("b", "a")),
    parts(evaluation={"before": {"a": 0.0}, "after": {"a": -0.0}}),
    parts(evaluation={"before": {"a": 0}, "after": {"a": 0.0}}),
    parts(dictionary_learner="l1"),
    # What follows is the same artifact: an edit's zeros have no sign.
    edited(direction=torch.tensor([0.6, -0.0, -0.8, 0.0])),
    parts(data={}),
    parts(pictures={"a": b"\x89PNG\r\n\x1a\n"}),
]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.lists(st.sampled_from(CHANGES), max_size=3), st.lists(st.sampled_from(CHANGES), max_size=3)
)
def test_there_is_no_difference_exactly_when_the_digests_are_equal(
    first: list[Callable[[EditArtifact], EditArtifact]],
    second: list[Callable[[EditArtifact], EditArtifact]],
) -> None:
    one, other = base_artifact(), base_artifact()
    for change in first:
        one = change(one)
    for change in second:
        other = change(other)
    there, back = one.diff(other), other.diff(one)
    assert bool(there) == bool(back) == (one.digest != other.digest)
    assert there.same_edit == (one.edit == other.edit)
    assert {(field.path, repr(field.ours)) for field in there.fields} == {
        (field.path, repr(field.theirs)) for field in back.fields
    }
    json.dumps(there.to_json(), allow_nan=False)


@pytest.mark.parametrize("change", CHANGES[1:-3])
def test_every_change_of_the_identity_is_found(
    change: Callable[[EditArtifact], EditArtifact],
) -> None:
    assert base_artifact().diff(change(base_artifact()))
