"""Applying and reverting: bit for bit, in place, in any order, in any dtype, or not at all."""

import copy
import gc
import pickle
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import bits as state
from small_network import ledgers
from torch import Tensor, nn

from salve_plugin import Dictionary, HookedModel, enhance, status, suppress
from salve_plugin.control import application, formula, ledger
from salve_plugin.control.application import apply_all_, forget_, revert_all_
from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.control.edit import Edit
from salve_plugin.control.matching import BaseMatch
from salve_plugin.control.saved import pristine_rows, restore_rows_
from salve_plugin.demo import digits
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import BaseMismatchError, EditStateError, InputError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def head(hooked: HookedModel) -> nn.Parameter:
    return hooked.model.get_parameter("head.weight")


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def several(hooked: HookedModel, atoms: Dictionary) -> list[Edit]:
    return [
        suppress(hooked, atoms, latent=0, strength=1.3),
        enhance(hooked, atoms, latent=1, strength=0.7),
        suppress(hooked, atoms, latent=2, strength=0.9, rows=[0, 2]),
        enhance(hooked, atoms, latent=3, strength=2.1, rows=[2, 3]),
    ]


def test_the_weight_becomes_the_formula_and_comes_back(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    before = head(tiny).detach().clone()
    edit = suppress(tiny, atoms, latent=3, strength=1.5)
    edit.apply_(tiny)
    factors = (1 - 1.5 * atoms.atoms[3].double().abs()).clamp(min=0)
    assert torch.equal(head(tiny), before * factors.float())
    edit.revert_(tiny)
    assert bits(head(tiny)) == bits(before)
    assert not ledgers(tiny)


@pytest.mark.parametrize("rows", [None, [1], [0, 2, 3]])
def test_the_edited_model_is_the_model_with_gated_features(
    tiny: HookedModel, atoms: Dictionary, rows: list[int] | None
) -> None:
    tiny.double()
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(20, 3, generator=draw, dtype=torch.float64)
    features = tiny.model.get_submodule("body")(x).relu()
    weight, bias = tiny.unembed()
    gated = (features * (1 - 1.5 * atoms.atoms[3].double().abs()).clamp(min=0)) @ weight.T + bias
    expected = features @ weight.T + bias
    index = slice(None) if rows is None else rows
    expected[:, index] = gated[:, index]
    with suppress(tiny, atoms, latent=3, strength=1.5, rows=rows).applied(tiny):
        torch.testing.assert_close(tiny(x), expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from(DTYPES))
def test_neither_order_of_applying_nor_of_reverting_matters(
    make_tiny: Callable[[], HookedModel],
    atoms: Dictionary,
    chance: random.Random,
    dtype: torch.dtype,
) -> None:
    tiny = make_tiny().to(dtype)
    pristine = bits(head(tiny))
    edits = several(tiny, atoms)
    chosen = chance.sample(edits, chance.randint(1, 4))
    for edit in chosen:
        edit.apply_(tiny)
    together = bits(head(tiny))
    # What is left after a revert is what those edits alone give, at every step down to none.
    chance.shuffle(chosen)
    while chosen:
        chosen.pop().revert_(tiny)
        other = make_tiny().to(dtype)
        for edit in chance.sample(chosen, len(chosen)):
            edit.apply_(other)
        assert bits(head(tiny)) == bits(head(other))
    assert bits(head(tiny)) == pristine
    assert not ledgers(tiny)
    assert len(together) == len(pristine)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from(DTYPES))
def test_several_at_once_are_the_same_as_one_after_the_other(
    make_tiny: Callable[[], HookedModel],
    atoms: Dictionary,
    chance: random.Random,
    dtype: torch.dtype,
) -> None:
    tiny, other = make_tiny().to(dtype), make_tiny().to(dtype)
    pristine = bits(head(tiny))
    edits = several(tiny, atoms)
    chance.shuffle(edits)
    before, at_once = edits[: chance.randint(0, 2)], edits[2:]
    for edit in (*before, *at_once):
        edit.apply_(other)
    for edit in before:
        edit.apply_(tiny)
    apply_all_(tiny, at_once)
    assert bits(head(tiny)) == bits(head(other))
    assert {entry.edit for entry in status(tiny).applied} == {*before, *at_once}
    gone = chance.sample([*before, *at_once], chance.randint(1, len(before) + 2))
    revert_all_(tiny, gone)
    for edit in gone:
        edit.revert_(other)
    assert bits(head(tiny)) == bits(head(other))
    revert_all_(tiny, [entry.edit for entry in status(tiny).applied])
    assert bits(head(tiny)) == pristine
    assert not ledgers(tiny)


def test_of_several_edits_none_is_applied_or_reverted_if_one_cannot_be(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    first, second, third, fourth = several(tiny, atoms)
    third.apply_(tiny)
    before, had = state(tiny), ledgers(tiny)
    foreign = replace(
        fourth,
        base=Base(fourth.base.description, {"head.weight": Fingerprint.of(torch.ones(4, 6))}),
    )
    for wrong, error in (
        ([first, third], EditStateError),
        ([first, second, first], EditStateError),
        ([first, foreign], BaseMismatchError),
    ):
        with pytest.raises(error):
            apply_all_(tiny, wrong)
        assert state(tiny) == before
        assert ledgers(tiny) == had
    with pytest.raises(EditStateError):
        revert_all_(tiny, [third, first])
    assert state(tiny) == before
    assert ledgers(tiny) == had


def test_several_edits_give_one_product(tiny: HookedModel, atoms: Dictionary) -> None:
    before = head(tiny).detach().double()
    edits = several(tiny, atoms)
    for edit in edits:
        edit.apply_(tiny)
    for row in range(4):
        exact = before[row].clone()
        for edit in sorted(edits, key=lambda edit: edit.digest):
            if edit.rows is None or row in edit.rows:
                exact *= edit.gate.factors
        # Two roundings to float32, of the product of factors and of the weight's.
        torch.testing.assert_close(head(tiny)[row].double(), exact, rtol=1.2e-7, atol=0)


def test_undo_restores_columns_that_the_clamp_made_zero_and_odd_values(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    with torch.no_grad():
        head(tiny)[0, 0], head(tiny)[1, 1], head(tiny)[2, 2] = -0.0, torch.nan, 1e-42
    before = bits(head(tiny))
    edit = suppress(tiny, atoms, latent=0, strength=1000.0)
    edit.apply_(tiny)
    assert int((head(tiny) == 0).sum()) >= 20
    edit.revert_(tiny)
    assert bits(head(tiny)) == before


def test_every_reader_is_edited_or_none(
    tiny: HookedModel, make_dictionary: Callable[..., Dictionary]
) -> None:
    edit = suppress(tiny, make_dictionary(tiny.site("both")), latent=0, strength=1.0)
    before = state(tiny.model)
    edit.apply_(tiny)
    after = state(tiny.model)
    assert {name for name in after if after[name] != before[name]} == {"head.weight", "side.weight"}
    edit.revert_(tiny)
    assert state(tiny.model) == before
    with torch.no_grad():
        tiny.model.get_parameter("side.weight").add_(1)
    broken = state(tiny.model)
    with pytest.raises(BaseMismatchError, match=r"side\.weight"):
        edit.apply_(tiny)
    assert state(tiny.model) == broken
    assert not ledgers(tiny)


def test_an_error_between_two_readers_leaves_the_first_as_it_was(
    tiny: HookedModel,
    make_dictionary: Callable[..., Dictionary],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edit = suppress(tiny, make_dictionary(tiny.site("both")), latent=0, strength=1.0)
    before = state(tiny.model)
    write, calls = ledger._write, []

    def interrupted(reader: object, entry: object) -> None:
        calls.append(reader)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(reader, entry)  # type: ignore[arg-type] # passed through unchanged

    monkeypatch.setattr(ledger, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edit.apply_(tiny)
    assert state(tiny.model) == before
    assert not ledgers(tiny)


def test_addresses_tying_grads_and_optimizers_survive(tiny: HookedModel, atoms: Dictionary) -> None:
    parameter = head(tiny)
    tied = nn.Linear(6, 4)
    tied.weight = parameter
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.square().sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    optimizer.step()
    assert parameter.grad is not None
    address, gradient = parameter.data_ptr(), bits(parameter.grad)
    moments = bits(optimizer.state[parameter]["exp_avg"])
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    edit.apply_(tiny)
    assert head(tiny) is parameter is tied.weight
    assert parameter.data_ptr() == address
    assert parameter.requires_grad
    assert bits(parameter.grad) == gradient
    assert parameter.is_leaf
    assert bits(optimizer.state[parameter]["exp_avg"]) == moments
    assert list(tiny.model.state_dict()) == [
        "body.weight", "body.bias", "head.weight", "head.bias", "side.weight", "side.bias",
    ]  # fmt: skip
    edit.revert_(tiny)


def test_a_weight_shared_by_two_readers_is_edited_once(
    tiny: HookedModel, make_dictionary: Callable[..., Dictionary]
) -> None:
    tiny.model.side = nn.Linear(6, 4)
    tiny.model.side.weight = head(tiny)
    edit = suppress(tiny, make_dictionary(tiny.site("both")), latent=0, strength=1.0)
    assert list(edit.base.tensors) == ["head.weight"]
    before = head(tiny).detach().clone()
    edit.apply_(tiny)
    assert torch.equal(head(tiny), before * edit.gate.factors.float())


def test_the_context_reverts_on_error_too(tiny: HookedModel, atoms: Dictionary) -> None:
    before = state(tiny.model)
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    seen = []

    def fail() -> None:
        seen.append(state(tiny.model))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), edit.applied(tiny):
        fail()
    assert seen != [before]
    assert state(tiny.model) == before


def test_a_copy_is_edited_and_the_model_left_alone(tiny: HookedModel, atoms: Dictionary) -> None:
    before = state(tiny.model)
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    for model in (tiny, tiny.model):
        edited = edit.edited(model)
        assert type(edited) is type(model)
        assert [entry.edit for entry in status(edited).applied] == [edit]
    assert state(tiny.model) == before
    assert not status(tiny).applied


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_or_pickled_edited_model_can_still_be_reverted(
    tiny: HookedModel, atoms: Dictionary, copied: Callable[[nn.Module], nn.Module]
) -> None:
    before = state(tiny.model)
    edits = several(tiny, atoms)
    for edit in edits:
        edit.apply_(tiny.model)
    twin = copied(tiny.model)
    for edit in edits:
        edit.revert_(twin)
    assert state(twin) == before
    assert state(tiny.model) != before
    assert len(status(tiny).applied) == 4


def test_status_lists_edits_in_order_and_what_overlaps(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    assert status(tiny).applied == ()
    first, _, third, fourth = several(tiny, atoms)
    for edit in (fourth, third):
        edit.apply_(tiny)
    (overlap,) = status(tiny).overlaps
    assert (overlap.first, overlap.second, overlap.rows) == (fourth, third, (2,))
    first.apply_(tiny)
    found = status(tiny.model)
    assert [entry.edit for entry in found.applied] == [fourth, third, first]
    assert {entry.tensors for entry in found.applied} == {("head.weight",)}
    assert [overlap.rows for overlap in found.overlaps] == [(2,), (2, 3), (0, 2)]
    assert found.to_json()["overlaps"][0]["tensor"] == "head.weight"  # type: ignore[index] # JSON


def test_disjoint_rows_do_not_overlap(tiny: HookedModel, atoms: Dictionary) -> None:
    for row in range(3):
        suppress(tiny, atoms, latent=row, strength=1.0, rows=[row]).apply_(tiny)
    assert status(tiny).overlaps == ()


def test_applying_twice_and_reverting_what_is_not_there_are_errors(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    with pytest.raises(EditStateError, match="not applied"):
        edit.revert_(tiny)
    edit.apply_(tiny)
    with pytest.raises(EditStateError, match="already applied"):
        replace(edit).apply_(tiny)
    with pytest.raises(EditStateError, match="not applied"):
        edit.with_strength(2.0).revert_(tiny)
    replace(edit).revert_(tiny)
    with pytest.raises(EditStateError, match="not applied"):
        edit.revert_(tiny)


@pytest.mark.parametrize("how", ["training", "load_state_dict"])
def test_weights_that_somebody_changed_are_never_overwritten(
    tiny: HookedModel, atoms: Dictionary, how: str
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    original = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    edit.apply_(tiny)
    if how == "training":
        optimizer = torch.optim.SGD([head(tiny)], lr=0.1)
        head(tiny).sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
    else:
        tiny.model.load_state_dict(original)
    changed = state(tiny.model)
    with pytest.raises(EditStateError, match=r"forget_\(model\)"):
        edit.revert_(tiny)
    with pytest.raises(EditStateError, match="were changed"):
        suppress(tiny, atoms, latent=1, strength=1.0).apply_(tiny)
    with pytest.raises(EditStateError, match="were changed"):
        edit.apply_(tiny)  # not "already applied": the weights are not what it made of them
    assert state(tiny.model) == changed
    if how == "training":
        edit.revert_(tiny, on_changed="discard")
        assert bits(head(tiny)) == bits(original["head.weight"])
    else:
        forget_(tiny)
        assert state(tiny.model) == changed
        edit.apply_(tiny)
        edit.revert_(tiny)
    assert not ledgers(tiny)


def test_a_change_found_late_leaves_the_rows_before_it_edited(
    tiny: HookedModel, atoms: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formula, "_BLOCK", 6)  # one row is compared at a time
    before = state(tiny.model)
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    edit.apply_(tiny)
    edited, value = state(tiny.model), head(tiny)[3, 5].item()
    with torch.no_grad():
        head(tiny)[3, 5] += 1
    changed = state(tiny.model)
    with pytest.raises(EditStateError, match="were changed"):
        edit.revert_(tiny)
    assert state(tiny.model) == changed
    with torch.no_grad():
        head(tiny)[3, 5] = value
    assert state(tiny.model) == edited
    edit.revert_(tiny)
    assert state(tiny.model) == before


def test_training_the_rows_that_are_not_edited_does_no_harm(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0, rows=[1])
    edit.apply_(tiny)
    with torch.no_grad():
        head(tiny)[3] += 1
    trained = head(tiny)[3].detach().clone()
    edit.revert_(tiny)
    assert torch.equal(head(tiny)[3], trained)


def test_an_edited_model_that_is_cast_reverts_to_the_cast_base(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    base = head(tiny).detach().half()
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    edit.apply_(tiny)
    tiny.half()
    edit.revert_(tiny)
    assert bits(head(tiny)) == bits(base)


def test_another_model_is_refused_or_warned_about(
    tiny: HookedModel, make_tiny: Callable[[], HookedModel], atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    other = make_tiny()
    with torch.no_grad():
        head(other)[0, 0] += 1
    before = head(other).detach().clone()
    digest = edit.base.tensors["head.weight"].sha256[:12]
    with pytest.raises(BaseMismatchError, match=rf"head\.weight.*expected float32.*{digest}"):
        edit.apply_(other)
    assert torch.equal(head(other), before)
    with pytest.warns(UserWarning, match=r"head\.weight"):
        edit.apply_(other, on_base_mismatch="warn")
    assert torch.equal(head(other), before * edit.gate.factors.float())
    edit.revert_(other)
    assert bits(head(other)) == bits(before)


@pytest.mark.parametrize("shape", [(4, 7), (2, 6)])
def test_a_head_of_another_shape_is_refused_even_with_a_warning(
    tiny: HookedModel, atoms: Dictionary, shape: tuple[int, int]
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0, rows=[3])
    tiny.model.head = nn.Linear(shape[1], shape[0])
    with pytest.raises(BaseMismatchError, match=r"head\.weight"):
        edit.apply_(tiny, on_base_mismatch="warn")
    with pytest.raises(BaseMismatchError, match="no layer 'head'"):
        edit.apply_(nn.Linear(2, 2))


def test_a_changed_weight_is_noticed_after_a_first_verified_application(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    with edit.applied(tiny):
        pass
    with torch.no_grad():
        head(tiny)[0, 0] += 1
    with pytest.raises(BaseMismatchError):
        edit.apply_(tiny)


def test_edits_of_one_base_share_the_memory_of_its_rows(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    edits = [suppress(tiny, atoms, latent=latent, strength=1.0) for latent in range(5)]
    for edit in edits:
        with edit.applied(tiny):
            pass
    assert len({edit._verified["head.weight"].data_ptr() for edit in edits}) == 1
    sizes = len(application._verified)
    del edits, edit
    gc.collect()
    assert len(application._verified) < sizes


def test_an_edit_made_on_an_edited_model_has_the_pristine_base(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    first = suppress(tiny, atoms, latent=0, strength=1.0)
    expected = suppress(tiny, atoms, latent=1, strength=1.0)
    first.apply_(tiny)
    second = suppress(tiny, atoms, latent=1, strength=1.0)
    assert second == expected
    second.apply_(tiny)
    first.revert_(tiny)
    assert [entry.edit for entry in status(tiny).applied] == [second]


@pytest.mark.parametrize("rows", [None, [1, 3]])
def test_a_model_saved_in_edited_form_is_restored_from_the_pristine_rows(
    tiny: HookedModel,
    make_tiny: Callable[[], HookedModel],
    atoms: Dictionary,
    rows: list[int] | None,
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0, rows=rows)
    before = state(tiny.model)
    edit.apply_(tiny)
    kept = pristine_rows(tiny, edit)
    assert kept["head.weight"].shape == (4 if rows is None else 2, 6)
    loaded = make_tiny()
    loaded.model.load_state_dict(tiny.model.state_dict())
    restore_rows_(loaded, edit, kept)
    assert state(loaded.model) == before
    # Now it is the base, no longer the edited model: a second time must not do anything.
    with pytest.raises(EditStateError, match="not what edit"):
        restore_rows_(loaded, edit, kept)
    assert state(loaded.model) == before


def test_restoring_refuses_what_would_not_give_the_base(
    tiny: HookedModel, make_tiny: Callable[[], HookedModel], atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0, rows=[1])
    edit.apply_(tiny)
    kept = pristine_rows(tiny, edit)
    with pytest.raises(EditStateError, match="has a ledger"):
        restore_rows_(tiny, edit, kept)
    loaded = make_tiny()
    loaded.model.load_state_dict(tiny.model.state_dict())
    with pytest.raises(InputError, match="pristine rows are given for"):
        restore_rows_(loaded, edit, {})
    with pytest.raises(InputError, match=r"expected float32\[1, 6\]"):
        restore_rows_(loaded, edit, {"head.weight": kept["head.weight"].double()})
    with pytest.raises(EditStateError, match="not what edit"):
        restore_rows_(loaded, edit, {"head.weight": kept["head.weight"] + 1})
    with torch.no_grad():
        head(loaded)[0] += 1  # a row that the edit does not touch: the whole is not the base
    with pytest.raises(BaseMismatchError, match=r"head\.weight"):
        restore_rows_(loaded, edit, kept)


def test_real_networks_give_their_old_logits_back_bit_for_bit(
    digits_network: nn.Module,
    digits_test: digits.Split,
    make_dictionary: Callable[..., Dictionary],
) -> None:
    from salve_plugin import attach

    hooked = attach(digits_network)
    site = hooked.site("unembed.hook_in")
    images = digits_test.images[:32]
    before, logits = state(digits_network), hooked(images)
    edit = suppress(hooked, make_dictionary(site), latent=0, strength=20.0)
    acts = record(hooked, [(images, digits_test.labels[:32])], progress=False)
    weight, bias = hooked.unembed()
    with edit.applied(digits_network):
        gated = (acts.tensor() * edit.gate.factors.float()) @ weight.T + bias
        torch.testing.assert_close(hooked(images), gated, rtol=1e-4, atol=1e-4)
        assert not torch.equal(hooked(images), logits)
    assert state(digits_network) == before
    assert torch.equal(hooked(images), logits)


def test_the_rest_of_the_model_is_compared_too(
    tiny: HookedModel, make_tiny: Callable[[], HookedModel], atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    assert edit.match(tiny) == BaseMatch(True, True)
    suppress(tiny, atoms, latent=1, strength=1.0).apply_(tiny)
    assert edit.match(tiny) == BaseMatch(True, True)  # what the model is without its edits
    other = make_tiny()
    with torch.no_grad():
        other.model.get_parameter("body.weight")[0, 0] += 1
    assert edit.match(other) == BaseMatch(True, False)
    assert "something else in the model is not" in str(edit.match(other))
    edit.apply_(other)  # the touched parameters match, as is asked for
    with torch.no_grad():
        fresh = make_tiny()
        head(fresh)[0, 0] += 1
    assert edit.match(fresh) == BaseMatch(False, None)
    assert not edit.match(nn.Linear(2, 2))
    unknown = replace(edit, base=Base(edit.base.description, edit.base.tensors))
    assert unknown.match(make_tiny()) == BaseMatch(True, None)


@pytest.mark.parametrize("seen_before", [False, True])
def test_untouched_rows_count_whether_or_not_the_edit_was_seen_before(
    tiny: HookedModel,
    make_tiny: Callable[[], HookedModel],
    atoms: Dictionary,
    seen_before: bool,
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0, rows=[1])
    if seen_before:
        with edit.applied(tiny):
            pass
    other = make_tiny()
    with torch.no_grad():
        head(other)[3, 0] += 1
    with pytest.raises(BaseMismatchError, match=r"head\.weight"):
        edit.apply_(other)


def test_the_record_of_an_edit_on_two_models_is_one_and_each_is_reverted_alone(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    """What an edit makes of its base is computed once; a second edit on top is of its model."""
    other, edit = copy.deepcopy(tiny.model), suppress(tiny, atoms, latent=3, strength=1.5)
    on_top = enhance(tiny, atoms, latent=1, strength=0.5, rows=[1])
    before = state(tiny.model)
    edit.apply_(tiny)
    edit.apply_(other)
    edited = state(other)
    on_top.apply_(tiny)
    assert state(other) == edited
    edit.revert_(tiny)
    on_top.revert_(tiny)
    assert state(tiny.model) == before
    assert state(other) == edited
    edit.revert_(other)
    assert state(other) == before


def test_what_is_derived_from_a_ledger_is_not_pickled_with_the_model(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    suppress(tiny, atoms, latent=3, strength=1.5).apply_(tiny)
    kept = next(each for each in ledgers(tiny.model) if isinstance(each, formula.Ledger))
    derived = kept.formula
    assert derived is kept.formula
    assert derived is not None
    again = pickle.loads(pickle.dumps(kept))
    assert "formula" not in vars(again)
    assert derived.cast is not None
    assert torch.equal(again.formula.cast, derived.cast)
