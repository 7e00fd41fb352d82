"""Several edits as one: composed, applied and reverted together, bit for bit or not at all."""

import hashlib
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import (
    WEIGHT,
    random_dictionary,
    small_bundle,
    small_edit,
    small_model,
    state_bytes,
)
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.control.edit import Edit, base_of
from salve_plugin.control.operators import Mode
from salve_plugin.demo import digits
from salve_plugin.errors import (
    BaseMismatchError,
    EditStateError,
    InputError,
    UnsupportedModelError,
)
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.composition import Composition, MemberOverlap

FIXTURES = Path(__file__).parents[1] / "fixtures"


def atoms_of(width: int, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(width)
    return nn.functional.normalize(torch.randn(count, width, generator=draw), dim=1)


def several(hooked: salve.HookedModel) -> dict[str, EditArtifact]:
    """Return edits of the head and, where there are any, of two hidden weights."""
    atoms = random_dictionary(hooked)
    edits = {
        "all-rows": salve.suppress(hooked, atoms, latent=0, strength=2.5),
        "more": salve.enhance(hooked, atoms, latent=1, strength=1.25, rows=[3, 5]),
        "less": salve.suppress(hooked, atoms, latent=2, strength=6.0, rows=[5, 7]),
    }
    hidden = [site for site in hooked.sites.values() if site.readers][:2]
    for site in hidden:
        if site.name == "unembed.hook_in":
            continue
        for latent, rows in enumerate([(0, 1, 9), None]):
            atom = atoms_of(site.width, 2)[latent]
            name = f"{site.name.lower().replace('.', '-')}-{latent}"
            base = base_of(hooked, site)
            edits[name] = Edit(site, "scale", "suppress", latent, atom, 2.0, rows, base)
    return {name: EditArtifact.of(hooked, edit) for name, edit in edits.items()}


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
    assert bundle.composition.overlaps == (
        MemberOverlap("all-rows", "less", "fc.weight", (5, 7)),
        MemberOverlap("all-rows", "more", "fc.weight", (3, 5)),
        MemberOverlap("less", "more", "fc.weight", (5,)),
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
    base, atoms = base_of(hooked, site), atoms_of(64, 4)
    edits = {
        name: Edit(site, "scale", mode, latent, atoms[latent], strength, rows, base)
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


# --- all or nothing ------------------------------------------------------------------------------


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

    monkeypatch.setattr(EditBundle, "_check_result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle.apply_(model)
    assert state_bytes(model) == before
    assert not salve.status(model).applied


def test_a_result_that_is_not_the_recorded_one_is_taken_back() -> None:
    edit = small_edit()
    members = {
        "one": EditArtifact(edit),
        "two": EditArtifact(replace(edit, strength=0.5, rows=(1,))),
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
    foreign = replace(small_edit(), strength=0.125)
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


# --- what makes no bundle ------------------------------------------------------------------------


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
    members = {"a": EditArtifact(edit), "b": EditArtifact(replace(edit, base=again))}
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
