"""Stacks of edits of every form, side and view: no order, no lost bit, whatever happens between."""

import copy
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import MAKERS, bits, random_edits, small
from torch import nn

from salve_plugin import HookedModel, LowRankMap, Site, edit_at, status
from salve_plugin.control import ledger
from salve_plugin.control.application import apply_all_, revert_all_
from salve_plugin.control.edit import Edit
from salve_plugin.control.edited import touched_rows
from salve_plugin.control.rows import take, union_of
from salve_plugin.control.saved import pristine_rows, restore_all_

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
chances = st.randoms(use_true_random=False)


def unlike(edits: list[Edit]) -> list[Edit]:
    return list(dict.fromkeys(edits))


def has_ledgers(model: nn.Module) -> bool:
    return any(ledger.ATTRIBUTE in vars(module) for module in model.modules())


@pytest.mark.parametrize("make", MAKERS)
def test_each_kind_reproduces_the_change_at_its_site(
    make: Callable[[HookedModel, random.Random], Edit],
) -> None:
    for seed in range(4):
        hooked = small()
        edit = make(hooked, random.Random(seed))
        if edit.exactness is None:  # a slice, made by hand
            continue
        assert edit.exactness.difference <= 1e-5
        images = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        before, logits = bits(hooked.model), hooked(images)
        with edit.applied(hooked):
            assert {n for n, b in bits(hooked.model).items() if b != before[n]} <= {
                *edit.base.tensors, "twin.weight",
            }  # fmt: skip
        assert bits(hooked.model) == before
        assert torch.equal(hooked(images), logits)


@settings(deadline=None, max_examples=12, derandomize=True)
@given(chances, st.integers(1, 8), st.sampled_from(DTYPES))
def test_order_does_not_matter_and_undo_is_exact(
    chance: random.Random, count: int, dtype: torch.dtype
) -> None:
    hooked, other = small(dtype), small(dtype)
    pristine = bits(hooked.model)
    edits = unlike(random_edits(hooked, chance, count))
    for edit in edits:
        edit.apply_(hooked)
    apply_all_(other, chance.sample(edits, len(edits)))
    assert bits(hooked.model) == bits(other.model)
    while edits:
        edits.pop(chance.randrange(len(edits))).revert_(hooked)
        fresh = small(dtype)
        apply_all_(fresh, chance.sample(edits, len(edits)))
        assert bits(hooked.model) == bits(fresh.model)
    assert bits(hooked.model) == pristine
    assert not has_ledgers(hooked)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_random_steps_leave_nothing_behind(dtype: torch.dtype) -> None:
    chance = random.Random(0)
    hooked = small(dtype)
    pristine = bits(hooked.model)
    edits = unlike(random_edits(hooked, chance, 8))
    on: list[Edit] = []
    for step in range(1000):
        edit = chance.choice(edits)
        if edit in on:
            edit.revert_(hooked)
            on.remove(edit)
        else:
            edit.apply_(hooked)
            on.append(edit)
        if step % 100 == 99:
            fresh = small(dtype)
            apply_all_(fresh, on)
            assert bits(hooked.model) == bits(fresh.model)
    revert_all_(hooked, on)
    assert bits(hooked.model) == pristine
    assert not has_ledgers(hooked)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(chances, st.sampled_from(DTYPES), st.sampled_from([copy.deepcopy, pickle.loads]))
def test_copies_keep_their_ledgers(
    chance: random.Random, dtype: torch.dtype, copied: Callable[..., nn.Module]
) -> None:
    hooked = small(dtype)
    pristine = bits(hooked.model)
    edits = unlike(random_edits(hooked, chance, 4))
    apply_all_(hooked, edits)
    edited = bits(hooked.model)
    source = hooked.model if copied is copy.deepcopy else pickle.dumps(hooked.model)
    twin = copied(source)
    revert_all_(twin, edits)
    assert bits(twin) == pristine
    assert twin.get_parameter("twin.weight") is twin.get_parameter("head.weight")
    assert bits(hooked.model) == edited


@settings(deadline=None, max_examples=8, derandomize=True)
@given(chances, st.integers(1, 5), st.sampled_from(DTYPES))
def test_a_model_saved_with_a_stack_is_restored_from_the_pristine_rows(
    chance: random.Random, count: int, dtype: torch.dtype
) -> None:
    hooked = small(dtype)
    pristine = bits(hooked.model)
    edits = unlike(random_edits(hooked, chance, count))
    apply_all_(hooked, edits)
    rows: dict[str, torch.Tensor] = {}
    for path in {path for edit in edits for path in edit.base.tensors}:
        own = [edit for edit in edits if path in edit.base.tensors]
        whole = small(dtype).model.get_parameter(path).detach()
        touched = union_of([touched_rows(edit, path) for edit in own])
        rows[path] = take(whole, touched).clone()
    loaded = small(dtype)
    loaded.model.load_state_dict(hooked.model.state_dict())
    restore_all_(loaded, edits, rows)
    assert bits(loaded.model) == pristine
    assert set(pristine_rows(hooked, edits[0])) == set(edits[0].base.tensors)


def test_an_edit_made_through_a_tied_path_has_the_pristine_base() -> None:
    hooked = small()
    pristine = bits(hooked.model)
    chance = random.Random(3)
    first = MAKERS[0](hooked, chance)
    second = MAKERS[4](hooked, chance)
    expected = MAKERS[4](small(), _rewound(chance, 3))
    first.apply_(hooked)
    tied = HookedModel(
        hooked.model,
        [_through_twin(hooked)],
        attribution_site=None,
        description=dict(hooked.description),
        heads={},
    )

    other = edit_at(
        tied, "sum", LowRankMap(torch.eye(6)[:, :1], torch.eye(6)[:, :1], torch.zeros(1))
    )
    assert other.base.tensors["twin.weight"] == first.base.tensors["head.weight"]
    other.apply_(hooked)
    second.apply_(hooked)
    for edit in (first, other, second):  # in the order of applying, not backwards
        edit.revert_(hooked)
    assert bits(hooked.model) == pristine
    assert expected.base == second.base


def _rewound(_: random.Random, seed: int) -> random.Random:
    chance = random.Random(seed)
    MAKERS[0](small(), chance)
    return chance


def _through_twin(hooked: HookedModel) -> Site:
    return replace(hooked.site("sum"), module="twin", readers=("twin", "head"))


def test_edits_inside_an_autocast_region_have_their_effect() -> None:
    hooked = small()
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    edit = MAKERS[4](hooked, random.Random(1))
    with torch.autocast("cpu", torch.bfloat16):
        before = hooked(images)
        edit.apply_(hooked)
        inside = hooked(images)
    with torch.autocast("cpu", torch.bfloat16):
        after = hooked(images)
    assert torch.equal(inside, after)
    assert not torch.equal(inside, before)
    with torch.autocast("cpu", torch.bfloat16):
        hooked(images)
        edit.revert_(hooked)
        assert torch.equal(hooked(images), before)


def test_a_compiled_model_takes_edits_and_gives_them_back() -> None:
    hooked = small()
    pristine = bits(hooked.model)
    compiled = torch.compile(hooked.model, backend="eager")
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = compiled(images)
        edits = unlike(random_edits(hooked, random.Random(5), 4))
        apply_all_(compiled, edits)  # type: ignore[arg-type] # torch.compile returns a module
        assert torch.equal(compiled(images), hooked.model(images))
        assert not torch.equal(compiled(images), before)
        assert len(status(hooked).applied) == len(edits)
        revert_all_(compiled, edits)  # type: ignore[arg-type] # torch.compile returns a module
        assert torch.equal(compiled(images), before)
    assert bits(hooked.model) == pristine


def test_two_threads_lose_no_weight() -> None:
    hooked = small()
    pristine = bits(hooked.model)
    edits = unlike(random_edits(hooked, random.Random(7), 8))
    failures: list[BaseException] = []

    def work(own: list[Edit], seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(60):
                edit = chance.choice(own)
                with edit.applied(hooked):
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(edits[at::2], at)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert bits(hooked.model) == pristine
    assert not has_ledgers(hooked)
