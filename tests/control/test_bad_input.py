"""Arguments of the wrong kind raise errors that say what was expected; nothing is written."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from salve_plugin import (
    Dictionary,
    EnhanceClass,
    Gate,
    HookedModel,
    LowRankMap,
    LowRankUpdate,
    Site,
    alpha_crit,
    direction_concept,
    edit_at,
    evaluate_multi_label,
    forgetting,
    joint_map,
    latent_concept,
    search_alpha_crit,
    status,
    suppress,
)
from salve_plugin.control.application import apply_, apply_all_, revert_
from salve_plugin.errors import SalveError
from salve_plugin.site import HEAD_INPUT

# What a user without a type checker sees, who has no checks of annotations at run time either.
pytestmark = pytest.mark.usefixtures("untyped")

AXIS = torch.eye(6)[:, :1]
ORIGIN = torch.zeros(1)
MAP = LowRankMap(AXIS, AXIS, ORIGIN)
META = torch.eye(6, device="meta")
any_edit_at: Any = edit_at
any_suppress: Any = suppress
any_gate: Any = Gate
any_map: Any = LowRankMap
any_update: Any = LowRankUpdate
any_joint: Any = joint_map
any_status: Any = status
any_multi_label: Any = evaluate_multi_label
any_forgetting: Any = forgetting
any_alpha_crit: Any = alpha_crit
any_search: Any = search_alpha_crit
any_latent_concept: Any = latent_concept
any_direction_concept: Any = direction_concept


NO_NUMBER = [
    None, "1", True, 1j, 10**400, [1.0], math.nan, math.inf, np.ones(2), torch.ones(2),
    torch.tensor(1.0, device="meta"), np.bool_(True),
]  # fmt: skip
NO_INDEX = [
    None, 1.0, "1", "", True, np.bool_(True), torch.tensor(True), torch.tensor(1.5), math.nan,
    [[1]], {1, 2}, 10**30, np.array([]), torch.tensor([]), torch.tensor([0.5]), -1, [],
]  # fmt: skip
NO_ROWS = [3, 1.0, "12", np.array(1), torch.tensor(1), [1.0], [None], [[1]], [10**30], [],
           torch.tensor([True]), [math.nan]]  # fmt: skip
NO_TENSOR = [
    None, "x", 1, [[1.0]], np.eye(6), torch.tensor(1.0), torch.zeros(6, 0), torch.zeros(0, 0),
    torch.zeros(0, 6), torch.full((6, 1), math.inf), torch.full((6, 1), math.nan), META,
    torch.eye(6).to_sparse(), torch.ones(6, 1, dtype=torch.int64), torch.eye(6, dtype=torch.cfloat),
]  # fmt: skip


@pytest.mark.parametrize("latent", NO_INDEX, ids=repr)
def test_latents(tiny: HookedModel, atoms: Dictionary, latent: object) -> None:
    with pytest.raises(SalveError, match="latent"):
        any_suppress(tiny, atoms, latent=latent, strength=1.0)


@pytest.mark.parametrize("rows", NO_ROWS, ids=repr)
def test_rows(tiny: HookedModel, atoms: Dictionary, rows: object) -> None:
    with pytest.raises(SalveError, match="rows"):
        any_suppress(tiny, atoms, latent=1, strength=1.0, rows=rows)
    with pytest.raises(SalveError, match="rows"):
        any_edit_at(tiny, HEAD_INPUT, MAP, rows=rows)


@pytest.mark.parametrize("number", NO_NUMBER, ids=repr)
def test_numbers(tiny: HookedModel, atoms: Dictionary, number: object) -> None:
    with pytest.raises(SalveError, match="strength"):
        any_suppress(tiny, atoms, latent=1, strength=number)
    with pytest.raises(SalveError, match="strength"):
        any_suppress(tiny, atoms, latent=1, strength=1.0).with_strength(number)
    with pytest.raises(SalveError, match="scale"):
        LowRankMap(AXIS, AXIS, ORIGIN, number)  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(SalveError, match=r"scaling|NaN"):
        any_update.from_lora(torch.ones(1, 6), torch.ones(4, 1), number)


@pytest.mark.parametrize("tensor", NO_TENSOR, ids=lambda tensor: repr(tensor)[:20])
def test_tensors(tensor: object) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: any_gate(tensor, 1.0),
        lambda: any_map(tensor, AXIS, ORIGIN),
        lambda: any_map(AXIS, tensor, ORIGIN),
        lambda: any_map(AXIS, AXIS, tensor),
        lambda: any_update(tensor, torch.ones(6, 1, dtype=torch.float64), torch.ones(1, 1)),
        lambda: any_update.from_lora(tensor, torch.ones(4, 7), 1.0),
    )
    for call in calls:
        with pytest.raises(SalveError):
            call()


def test_numbers_and_indices_of_numpy_and_torch_are_as_good_as_pythons(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    expected = suppress(tiny, atoms, latent=[1, 2], strength=2.0, rows=[3])
    for latent in (np.array([1, 2]), torch.tensor([1, 2]), [np.int32(1), torch.tensor(2)]):
        for strength in (np.float32(2), torch.tensor(2.0), 2):
            for rows in (np.array([3]), torch.tensor([3]), range(3, 4), iter([3])):
                edit = any_suppress(tiny, atoms, latent=latent, strength=strength, rows=rows)
                assert edit == expected


WRONG: dict[str, Callable[[HookedModel, Dictionary], object]] = {
    "no attached model": lambda t, d: any_edit_at(t.model, HEAD_INPUT, MAP),
    "no model": lambda t, d: any_suppress(None, d, latent=0, strength=1.0),
    "no dictionary": lambda t, d: any_suppress(t, None, latent=0, strength=1.0),
    "site None": lambda t, d: any_edit_at(t, None, MAP),
    "site of another width": lambda t, d: any_edit_at(
        t, Site(HEAD_INPUT, "head", "in", "pooled", 9), MAP
    ),
    "unknown site": lambda t, d: any_edit_at(t, "nowhere", MAP),
    "no operator": lambda t, d: any_edit_at(t, HEAD_INPUT, Gate),
    "operator of another width": lambda t, d: any_edit_at(t, HEAD_INPUT, Gate(AXIS[:5].T, 1.0)),
    "no base": lambda t, d: any_edit_at(t, "both", MAP, base="x"),
    "no provenance": lambda t, d: any_edit_at(t, "both", MAP, provenance="x"),
    "role": lambda t, d: any_edit_at(t, "both", MAP, role=["reader"]),
    "layer": lambda t, d: any_edit_at(t, "both", MAP, layer=3),
    "rows of an update": lambda t, d: any_edit_at(
        t, HEAD_INPUT, LowRankUpdate(torch.ones(5, 1), torch.ones(6, 1))
    ),
    "inputs of an update": lambda t, d: any_edit_at(
        t, HEAD_INPUT, LowRankUpdate(torch.ones(4, 1), torch.ones(5, 1))
    ),
    "mode": lambda t, d: any_gate(AXIS.T, 1.0, ["suppress"]),
    "joint of nothing": lambda t, d: any_joint([]),
    "joint of one, no list": lambda t, d: any_joint(MAP),
    "joint of gates": lambda t, d: any_joint([Gate(AXIS.T, 1.0)]),
    "joint of widths": lambda t, d: any_joint(
        [MAP, LowRankMap(AXIS[:5], AXIS[:5], ORIGIN)]
    ),
    "joint of zero": lambda t, d: any_joint([LowRankMap(0 * AXIS, AXIS, ORIGIN)]),
    "status of nothing": lambda t, d: any_status(None),
    "status with no artifacts": lambda t, d: any_status(t, [1]),
    "apply no edit": lambda t, d: apply_(t, "x"),  # type: ignore[arg-type] # wrong on purpose
    "apply no list": lambda t, d: apply_all_(t, 3),  # type: ignore[arg-type] # wrong on purpose
    "revert no edit": lambda t, d: revert_(t, 3),  # type: ignore[arg-type] # wrong on purpose
    "a way of a goal": lambda t, d: EnhanceClass(1, by="latent"),  # type: ignore[arg-type]
    "a threshold that is no number": lambda t, d: any_multi_label(t, [], threshold="x"),
    "what a bare model forgot": lambda t, d: any_forgetting(t.model, "x", [], target=1),
    "no recording of strengths": lambda t, d: any_alpha_crit(
        t, suppress(t, d, latent=0, strength=1.0), "x"
    ),
    "strengths of no edit": lambda t, d: any_alpha_crit(t, "x", "x"),
    "a fraction that is no number": lambda t, d: any_alpha_crit(t, "x", "x", fraction="half"),
    "steps of a search": lambda t, d: any_search(
        t, suppress(t, d, latent=0, strength=1.0), [], steps=2.5
    ),
    "halvings of a search": lambda t, d: any_search(
        t, suppress(t, d, latent=0, strength=1.0), [], halvings="8"
    ),
    "no recording of a latent": lambda t, d: any_latent_concept(d, "x", 1),
    "no dictionary of a latent": lambda t, d: any_latent_concept("x", "x", 1),
    "no recording of a direction": lambda t, d: any_direction_concept(3, torch.ones(6)),
    "a model without values": lambda t, d: suppress(t, d, latent=0, strength=1.0).apply_(
        t.model.to("meta")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_other_arguments(tiny: HookedModel, atoms: Dictionary, case: str) -> None:
    with pytest.raises(SalveError):
        WRONG[case](tiny, atoms)
    assert not status(tiny).applied


@pytest.mark.parametrize(
    "probe",
    ["x", [1], torch.ones(2, 5), torch.ones(0, 3), torch.full((2, 3), math.nan),
     torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, device="meta"), torch.tensor(1.0)],
)  # fmt: skip
def test_probes(tiny: HookedModel, probe: object) -> None:
    with pytest.raises(SalveError, match="probe"):
        any_edit_at(tiny, "both", MAP, probe=probe)


def test_what_to_do_with_changes_is_one_of_two_words(tiny: HookedModel, atoms: Dictionary) -> None:
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    edit.apply_(tiny)
    with torch.no_grad():
        tiny.model.get_parameter("head.weight").add_(1)
    trained = tiny.model.get_parameter("head.weight").detach().clone()
    with pytest.raises(SalveError, match="'Error' is neither"):
        edit.revert_(tiny, on_changed="Error")  # type: ignore[arg-type] # wrong on purpose
    assert torch.equal(tiny.model.get_parameter("head.weight"), trained)
