"""Multiples change every parameter in proportion, where the operator is linear in them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin import (
    Edit,
    Gate,
    HookedModel,
    LowRankMap,
    LowRankUpdate,
    SalveError,
    at_multiple,
    edit_at,
)
from salve_plugin.control.comparing.multiples import does_nothing

HEAD = "unembed.hook_in"


def edits_of(tiny: HookedModel, seed: int = 0) -> dict[str, Edit]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    atom = torch.nn.functional.normalize(normal(1, 6), dim=1)
    return {
        "gate": edit_at(tiny, HEAD, Gate(atom, 0.7)),
        "map": edit_at(tiny, HEAD, LowRankMap(normal(6, 2), normal(6, 2), normal(2), 0.4)),
        "update": edit_at(tiny, HEAD, LowRankUpdate(normal(4, 2), normal(6, 2), normal(4))),
    }


def change(tiny: HookedModel, edit: Edit) -> Tensor:
    head = tiny.model.get_submodule("head")
    before = torch.cat([head.get_parameter(n).detach().flatten() for n in ("weight", "bias")])
    with edit.applied(tiny.model):
        after = torch.cat([head.get_parameter(n).detach().flatten() for n in ("weight", "bias")])
    return after - before


@settings(max_examples=20, deadline=None)
@given(multiple=st.floats(-3, 3), seed=st.integers(0, 1000))
def test_maps_and_updates_change_weights_in_proportion(
    make_tiny: Callable[[], HookedModel], multiple: float, seed: int
) -> None:
    tiny = make_tiny()
    for kind in ("map", "update"):
        edit = edits_of(tiny, seed)[kind]
        expected = multiple * change(tiny, edit)
        torch.testing.assert_close(
            change(tiny, at_multiple(edit, multiple)), expected, rtol=1e-4, atol=1e-5
        )


def test_a_gates_strength_is_multiplied(tiny: HookedModel) -> None:
    edit = edits_of(tiny)["gate"]
    assert at_multiple(edit, 3.0).gate.strength == pytest.approx(2.1)
    with pytest.raises(SalveError, match=r"strength -0\.7"):
        at_multiple(edit, -1.0)


def test_one_is_the_edit_and_zero_does_nothing(tiny: HookedModel) -> None:
    for edit in edits_of(tiny).values():
        assert at_multiple(edit, 1.0) == edit
        assert not does_nothing(edit.operator)
        none = at_multiple(edit, 0.0)
        assert does_nothing(none.operator)
        assert not bool(change(tiny, none).any())


def test_what_is_no_edit_or_no_number_is_named(tiny: HookedModel) -> None:
    edit = edits_of(tiny)["map"]
    with pytest.raises(SalveError, match="multiple nan"):
        at_multiple(edit, float("nan"))
