"""Applying and reverting a bundle: all of it or nothing, whatever goes wrong in between."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from several_edits import several
from small_artifacts import (
    altered,
    small_bundle,
    small_edit,
    small_model,
    state_bytes,
)
from torch import nn

import salve_plugin as salve
from salve_plugin.errors import (
    BaseMismatchError,
    EditStateError,
)
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.composition import Composition

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_a_context_that_ends_in_an_error_leaves_the_model_as_it_was() -> None:
    bundle, model = small_bundle(), small_model()
    bundle.members["rows"].edit.apply_(model)
    before = state_bytes(model)

    def fail() -> None:
        assert state_bytes(model) != before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), bundle.applied(model):
        fail()
    assert state_bytes(model) == before
    assert [entry.edit for entry in salve.status(model).applied] == [bundle.members["rows"].edit]


def test_a_model_with_one_wrong_weight_gets_no_member_at_all(digits_vit: nn.Module) -> None:
    hooked = salve.attach(digits_vit)
    bundle = EditBundle.of(hooked, several(hooked))
    paths = sorted(bundle.composition.tensors)
    assert len(paths) == 3
    for path in paths:
        model = deepcopy(digits_vit)
        with torch.no_grad():
            weight = model.get_parameter(path)
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
        before = state_bytes(model)
        with pytest.raises(BaseMismatchError, match=path.replace(".", r"\.")):
            bundle.apply_(model)
        with pytest.raises(BaseMismatchError, match=path.replace(".", r"\.")):
            EditBundle.of(model, bundle.members)
        assert state_bytes(model) == before
        assert not salve.status(model).applied


def test_an_interrupt_while_the_result_is_checked_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, model = small_bundle(), small_model()
    before = state_bytes(model)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("salve_plugin.share.bundle_application._check_result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle.apply_(model)
    assert state_bytes(model) == before
    assert not salve.status(model).applied


def test_a_result_that_is_not_the_recorded_one_is_taken_back() -> None:
    edit = small_edit()
    members = {
        "one": EditArtifact(edit),
        "two": EditArtifact(altered(edit, strength=0.5, rows=(1,))),
    }
    right = EditBundle.of(small_model(), members)
    said = right.composition.tensors["fc.weight"]
    wrong = EditBundle(  # nothing in it shows the lie: no member carries pristine rows
        members,
        Composition({"fc.weight": replace(said, after="0" * 64)}, right.composition.overlaps),
    )
    model = small_model()
    members["two"].edit.apply_(model)
    before = state_bytes(model)
    with pytest.raises(EditStateError, match="make the bundle anew"):
        wrong.apply_(model)
    assert state_bytes(model) == before
    assert [entry.edit for entry in salve.status(model).applied] == [members["two"].edit]
    right.apply_(model)


def test_weights_that_were_changed_or_carry_foreign_edits_are_refused() -> None:
    bundle, model = small_bundle(), small_model()
    foreign = altered(small_edit(), strength=0.125)
    foreign.apply_(model)
    before = state_bytes(model)
    with pytest.raises(EditStateError, match=f"{foreign.digest[:12]}.* not in the bundle"):
        bundle.apply_(model)
    assert state_bytes(model) == before
    foreign.revert_(model)
    bundle.members["rows"].edit.apply_(model)
    with torch.no_grad():
        model.get_parameter("fc.weight")[1, 1] += 1
    before = state_bytes(model)
    with pytest.raises(EditStateError, match="changed since"):
        bundle.apply_(model)
    assert state_bytes(model) == before
