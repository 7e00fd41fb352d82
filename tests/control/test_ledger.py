"""What happens to a model between applying and reverting: nothing is lost, or it is said."""

import copy
import io
import threading
from collections.abc import Callable

import pytest
import torch
from small_network import bits as state
from small_network import ledgers
from torch import nn
from torch.nn.utils import parametrize, prune

from salve_plugin import Dictionary, HookedModel, LowRankMap, edit_at, enhance, status, suppress
from salve_plugin.control import ledger
from salve_plugin.control.application import forget_
from salve_plugin.control.edit import Edit
from salve_plugin.control.formula import Ledger
from salve_plugin.control.matching import pristine_state
from salve_plugin.errors import EditStateError, InputError, UnsupportedModelError
from salve_plugin.site import HEAD_INPUT


@pytest.fixture
def tied(tiny: HookedModel) -> HookedModel:
    """The tiny model with one weight for both readers."""
    side = nn.Linear(6, 4)
    side.weight = tiny.model.get_submodule("head").weight  # type: ignore[assignment] # a parameter
    tiny.model.side = side
    return tiny


@pytest.mark.parametrize("how", ["clone", "assign", "copy a layer"])
def test_a_weight_that_was_untied_or_copied_after_an_edit_is_reverted_too(
    tied: HookedModel, make_dictionary: Callable[..., Dictionary], how: str
) -> None:
    before = state(tied.model)
    edit = suppress(tied, make_dictionary(tied.site("both")), latent=0, strength=1.0)
    edit.apply_(tied)
    if how == "clone":
        side = tied.model.get_submodule("side")
        side.weight = nn.Parameter(side.get_parameter("weight").detach().clone())
    elif how == "assign":
        tensors = {name: value.clone() for name, value in tied.model.state_dict().items()}
        tied.model.load_state_dict(tensors, assign=True)
    else:
        tied.model.side = copy.deepcopy(tied.model.get_submodule("head"))
        before |= {"side.bias": before["head.bias"]}
    assert {path for entry in status(tied).applied for path in entry.tensors} == {
        "head.weight", "side.weight",
    }  # fmt: skip
    edit.revert_(tied)
    assert state(tied.model) == before
    assert not status(tied).applied
    assert not ledgers(tied)


def test_modules_edited_apart_and_tied_later_know_which_weight_it_is(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    twin = copy.deepcopy(tiny.model.get_submodule("head"))
    first = suppress(tiny, atoms, latent=0, strength=1.0)
    tiny.model.side = twin
    first.apply_(tiny)
    twin.__dict__[ledger.ATTRIBUTE] = {  # an edit of its own, of a weight that is gone
        "weight": Ledger((), None, torch.zeros(4, 6))
    }
    twin.weight = tiny.model.get_submodule("head").weight
    tiny.model._modules = dict(reversed(list(tiny.model._modules.items())))
    first.revert_(tiny)
    assert not ledgers(tiny)


@pytest.mark.parametrize("shape", [(4, 5), (2, 6), (6, 6), (4,)])
def test_a_parameter_of_another_shape_in_place_of_the_edited_one_is_noticed(
    tiny: HookedModel, atoms: Dictionary, shape: tuple[int, ...]
) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0, rows=[1, 3])
    edit.apply_(tiny)
    head = tiny.model.get_submodule("head")
    head.register_parameter("weight", nn.Parameter(torch.ones(shape)))
    fits = shape == (6, 6)
    with pytest.raises(EditStateError):
        edit.revert_(tiny)
    if not fits:
        with pytest.raises(EditStateError):
            edit.revert_(tiny, on_changed="discard")
        with pytest.raises(EditStateError):
            pristine_state(tiny.model)
    assert torch.equal(head.get_parameter("weight"), torch.ones(shape))
    forget_(tiny)
    assert not status(tiny).applied


@pytest.mark.parametrize("how", ["parametrize", "prune"])
def test_a_parametrization_added_later_is_named_and_can_be_removed(
    tiny: HookedModel, atoms: Dictionary, how: str
) -> None:
    before = state(tiny.model)
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    edit.apply_(tiny)
    head = tiny.model.get_submodule("head")
    if how == "parametrize":
        parametrize.register_parametrization(head, "weight", nn.Identity())
    else:
        prune.identity(head, "weight")  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert [entry.edit for entry in status(tiny).applied] == [edit]
    for call in (lambda: edit.revert_(tiny), lambda: pristine_state(tiny.model)):
        with pytest.raises(UnsupportedModelError, match="parametrization"):
            call()
    if how == "parametrize":
        parametrize.remove_parametrizations(head, "weight")
    else:
        prune.remove(head, "weight")  # type: ignore[no-untyped-call] # torch leaves it untyped
    edit.revert_(tiny)
    assert state(tiny.model) == before


def test_saving_the_whole_model_keeps_its_ledger(tiny: HookedModel, atoms: Dictionary) -> None:
    before = state(tiny.model)
    edit = edit_at(
        tiny, HEAD_INPUT, LowRankMap(atoms.atoms[:2].T, atoms.atoms[:2].T, torch.ones(2))
    )
    edit.apply_(tiny)
    file = io.BytesIO()
    torch.save(tiny.model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    edit.revert_(again)
    assert state(again) == before


def test_edits_pass_through_inference_mode(tiny: HookedModel, atoms: Dictionary) -> None:
    before = state(tiny.model)
    edits = [
        suppress(tiny, atoms, latent=0, strength=1.0),
        edit_at(tiny, HEAD_INPUT, LowRankMap(atoms.atoms[:1].T, atoms.atoms[:1].T, torch.ones(1))),
    ]
    with torch.inference_mode():
        edits[0].apply_(tiny)
    edits[1].apply_(tiny)
    edits[0].revert_(tiny)
    with torch.inference_mode():
        edits[1].revert_(tiny)
    assert state(tiny.model) == before
    with torch.inference_mode():
        other = copy.deepcopy(tiny.model)
    with pytest.raises(UnsupportedModelError, match="inference mode"):
        edits[0].apply_(other)
    with torch.inference_mode():
        edits[0].apply_(other)
        edits[0].revert_(other)
    assert state(other) == before


def interrupting(
    function: Callable[..., object], at: int, calls: list[object]
) -> Callable[..., object]:
    """Return the function, interrupted at one of its calls."""

    def called(*arguments: object, **keywords: object) -> object:
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    return called


@pytest.mark.parametrize("name", ["_write", "_record", "put", "forget", "take", "_trimmed"])
@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("applied", [0, 1, 2])
def test_an_interrupt_at_any_step_leaves_all_or_nothing(
    tiny: HookedModel,
    make_dictionary: Callable[..., Dictionary],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    at: int,
    applied: int,
) -> None:
    both = make_dictionary(tiny.site("both"))
    edits = [
        suppress(tiny, both, latent=0, strength=1.0),
        enhance(tiny, both, latent=1, strength=1.0, rows=[1, 3]),
        edit_at(tiny, "both", LowRankMap(both.atoms[:2].T, both.atoms[:2].T, torch.ones(2))),
    ]
    for edit in edits[:applied]:
        edit.apply_(tiny)
    before, kept = state(tiny.model), ledgers(tiny)
    calls: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(ledger, name, interrupting(getattr(ledger, name), at, calls))
        try:
            edits[2].apply_(tiny)
        except KeyboardInterrupt:
            assert state(tiny.model) == before
            assert set(ledgers(tiny)) == set(kept)
    if not any(entry.edit == edits[2] for entry in status(tiny).applied):
        edits[2].apply_(tiny)
    before, kept = state(tiny.model), ledgers(tiny)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ledger, name, interrupting(getattr(ledger, name), at, calls))
        try:
            edits[2].revert_(tiny)
        except KeyboardInterrupt:
            assert state(tiny.model) == before
            assert set(ledgers(tiny)) == set(kept)


def test_weights_that_the_dtype_cannot_hold_are_refused_and_nothing_is_written(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    axis = torch.full((6, 1), 1e30)
    edits = [
        edit_at(tiny, HEAD_INPUT, LowRankMap(axis, axis, torch.zeros(1))),
        enhance(tiny, atoms, latent=0, strength=1e300),
    ]
    before = state(tiny.model)
    for edit in edits:
        with pytest.raises(InputError, match="cannot hold"):
            edit.apply_(tiny)
        assert state(tiny.model) == before
        assert not ledgers(tiny)


def test_threads_that_edit_one_model_and_others_at_once_lose_nothing(
    tiny: HookedModel, make_tiny: Callable[[], HookedModel], atoms: Dictionary
) -> None:
    edits: list[Edit] = [
        *(suppress(tiny, atoms, latent=latent, strength=1.0) for latent in range(3)),
        edit_at(tiny, HEAD_INPUT, LowRankMap(atoms.atoms[:2].T, atoms.atoms[:2].T, torch.ones(2))),
    ]
    shared = edits[3]  # applied to models of their own in every thread at once
    before, errors = state(tiny.model), list[BaseException]()
    x = torch.ones(2, 3)
    models = [make_tiny() for _ in edits]

    def work(index: int) -> None:
        own = models[index]
        try:
            for _ in range(100):
                with edits[index].applied(tiny):
                    tiny(x)
                with shared.applied(own):
                    own(x)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert state(tiny.model) == before
    assert not ledgers(tiny)
