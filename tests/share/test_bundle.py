"""Several edits as one: composed, applied and reverted together, bit for bit or not at all."""

import hashlib
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from several_edits import atoms_of, several
from small_artifacts import (
    small_bundle,
    small_model,
    state_bytes,
)
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.control.operators import Mode
from salve_plugin.demo import digits
from salve_plugin.errors import (
    EditStateError,
)
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.composition import MemberOverlap

FIXTURES = Path(__file__).parents[1] / "fixtures"


def sha(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


# --- the whole way, on real networks -------------------------------------------------------------


def test_a_bundle_of_a_real_network_is_saved_loaded_applied_and_reverted_bit_for_bit(
    digits_network: nn.Module, digits_test: digits.Split, tmp_path: Path
) -> None:
    hooked, original = salve.attach(digits_network), state_bytes(digits_network)
    members = several(hooked)
    bundle = EditBundle.of(hooked, members)
    assert state_bytes(digits_network) == original
    bundle.save_pretrained(tmp_path)

    one_by_one = deepcopy(digits_network)
    for member in members.values():
        member.edit.apply_(one_by_one)
    loaded = EditBundle.from_pretrained(tmp_path)
    assert loaded.digest == bundle.digest
    loaded.apply_(digits_network)
    assert state_bytes(digits_network) == state_bytes(one_by_one) != original
    images = digits_test.images[:64]
    with torch.no_grad():
        assert torch.equal(digits_network(images), one_by_one(images))
    loaded.revert_(digits_network)
    assert state_bytes(digits_network) == original
    assert not salve.status(digits_network).applied
    for name, member in members.items():
        assert not member.diff(EditArtifact.from_pretrained(tmp_path, subfolder=name))


def test_the_composition_names_every_weight_before_and_after(digits_network: nn.Module) -> None:
    hooked = salve.attach(digits_network)
    members = several(hooked)
    bundle = EditBundle.of(hooked, members)
    paths = {path for member in members.values() for path in member.edit.base.tensors}
    assert set(bundle.composition.tensors) == paths
    before = {path: digits_network.get_parameter(path).detach().clone() for path in paths}
    bundle.apply_(digits_network)
    for path, said in bundle.composition.tensors.items():
        after = digits_network.get_parameter(path)
        assert (said.before.sha256, said.after) == (sha(before[path]), sha(after))
        rows = list(range(len(after))) if said.rows is None else list(said.rows)
        assert said.rows_after == sha(after[rows])
        others = [row for row in range(len(after)) if row not in rows]
        assert torch.equal(after[others], before[path][others])


def test_overlaps_name_the_members_and_the_rows(digits_resnet: nn.Module) -> None:
    hooked = salve.attach(digits_resnet)
    bundle = EditBundle.of(hooked, several(hooked))
    of_head = [each for each in bundle.composition.overlaps if each.tensor == "fc.weight"]
    assert tuple(of_head) == (
        MemberOverlap("all-rows", "less", "fc.weight", (5, 7), "factors multiply"),
        MemberOverlap("all-rows", "more", "fc.weight", (3, 5), "factors multiply"),
        MemberOverlap("less", "more", "fc.weight", (5,), "factors multiply"),
    )


def test_a_model_saved_with_all_members_is_restored_from_their_pristine_rows(
    digits_network: nn.Module, tmp_path: Path
) -> None:
    hooked, original = salve.attach(digits_network), state_bytes(digits_network)
    members = several(hooked)
    for kept in (list(members), ["more", "less"]):
        bundle = EditBundle.of(hooked, {name: members[name] for name in kept})
        bundle.save_pretrained(tmp_path / str(len(kept)))
        loaded = EditBundle.from_pretrained(tmp_path / str(len(kept)))
        with bundle.applied(digits_network):
            edited = deepcopy(digits_network.state_dict())
        digits_network.load_state_dict(edited)  # as a model that somebody else loads
        assert state_bytes(digits_network) != original
        loaded.revert_(digits_network)
        assert state_bytes(digits_network) == original


def test_a_saved_model_is_not_restored_where_that_would_not_be_exact(
    digits_resnet: nn.Module,
) -> None:
    hooked = salve.attach(digits_resnet)
    members = several(hooked)
    poor = {**members, "all-rows": replace(members["all-rows"], pristine=None)}
    for model_has, bundle_has, message in (
        (members, poor, "do not carry all pristine rows"),
        ({"more": members["more"]}, members, "are not what edit"),
        ({}, members, "are not what edit"),
    ):
        model = deepcopy(digits_resnet)
        if model_has:
            EditBundle.of(hooked, model_has).apply_(model)
        model.load_state_dict(deepcopy(model.state_dict()))
        salve.control.application.forget_(model)
        before = state_bytes(model)
        with pytest.raises(EditStateError, match=message):
            EditBundle.of(hooked, bundle_has).revert_(model)
        assert state_bytes(model) == before


def test_a_member_without_pristine_rows_does_no_harm_where_another_carries_them(
    digits_resnet: nn.Module,
) -> None:
    hooked, original = salve.attach(digits_resnet), state_bytes(digits_resnet)
    members = several(hooked)
    for name in ("more", "less"):
        members[name] = replace(members[name], pristine=None)
    bundle = EditBundle.of(hooked, members)
    bundle.apply_(digits_resnet)
    salve.control.application.forget_(digits_resnet)
    bundle.revert_(digits_resnet)
    assert state_bytes(digits_resnet) == original


# --- order, and members applied by themselves ----------------------------------------------------


@pytest.fixture(scope="module")
def make_network() -> Callable[[], nn.Module]:
    return lambda: digits.load("vit", FIXTURES / "digits_vit.safetensors")


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_order_of_members_has_no_meaning(
    make_network: Callable[[], nn.Module], chance: random.Random, dtype: torch.dtype
) -> None:
    network = make_network().to(dtype)
    site = salve.Site("unembed.hook_in", "head", "in", "pooled", 64, readers=("head",))
    hooked = salve.HookedModel(network, [site], attribution_site=None, description={"a": 1})
    kinds: list[tuple[str, Mode, float, tuple[int, ...] | None]] = [
        ("a", "suppress", 1.5, None),
        ("b", "enhance", 0.7, (2, 3)),
        ("c", "suppress", 5.0, (3, 9)),
        ("d", "enhance", 0.1, None),
    ]
    atoms = atoms_of(64, 4)
    edits = {
        name: salve.edit_at(
            hooked, site, salve.Gate(atoms[latent][None], strength, mode), rows=rows
        )
        for latent, (name, mode, strength, rows) in enumerate(kinds)
    }
    original = state_bytes(network)
    members = [(name, EditArtifact.of(hooked, edit)) for name, edit in edits.items()]
    first = EditBundle.of(hooked, dict(members))
    chance.shuffle(members)
    bundle = EditBundle.of(hooked, dict(members))
    assert bundle.digest == first.digest
    # Some are on the model before, by themselves and in any order; the bundle adds the others.
    alone = [member.edit for _, member in members[: chance.randint(0, 3)]]
    for edit in alone:
        edit.apply_(network)
    assert EditBundle.of(hooked, dict(members)).digest == first.digest
    before = state_bytes(network)
    with bundle.applied(network):
        together = state_bytes(network)
        assert sha(network.get_parameter("head.weight").view(torch.uint8)) == (
            first.composition.tensors["head.weight"].after
        )
    assert state_bytes(network) == before
    bundle.apply_(network)
    assert state_bytes(network) == together
    gone = [member.edit for _, member in members[: chance.randint(0, 3)]]
    for edit in gone:
        edit.revert_(network)
    bundle.revert_(network)
    assert state_bytes(network) == original
    assert not salve.status(network).applied


def test_applying_twice_and_reverting_what_is_not_there_are_errors_that_change_nothing() -> None:
    bundle, model = small_bundle(), small_model()
    pristine = state_bytes(model)
    with pytest.raises(EditStateError):
        bundle.revert_(model)
    assert state_bytes(model) == pristine
    bundle.apply_(model)
    edited = state_bytes(model)
    with pytest.raises(EditStateError, match="already applied"):
        bundle.apply_(model)
    assert state_bytes(model) == edited
    assert len(salve.status(model).applied) == 3
