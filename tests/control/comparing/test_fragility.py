"""Windows of success: on answers that are known, by brute force, and over contexts."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin import (
    Edit,
    Fragility,
    Gate,
    HookedModel,
    SalveError,
    at_multiple,
    attach,
    edit_at,
    fragility,
    mask,
    record,
)
from salve_plugin.control.comparing.fragility import _longest_run
from salve_plugin.demo import digits

HEAD = "unembed.hook_in"
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def hooked() -> HookedModel:
    return attach(digits.load("vit", Path(__file__).parents[2] / "fixtures/digits_vit.safetensors"))


@pytest.fixture(scope="module")
def data(digits_test: digits.Split) -> list[tuple[Tensor, Tensor]]:
    return [(digits_test.images[:60], digits_test.labels[:60])]


@pytest.fixture(scope="module")
def row_gate(hooked: HookedModel) -> Edit:
    width = hooked.sites[HEAD].width
    return edit_at(hooked, HEAD, Gate(torch.ones(1, width) / width**0.5, width**0.5 / 2), rows=[3])


def darker(images: Tensor) -> Tensor:
    return 0.5 * images


def test_it_is_what_a_user_would_count(
    hooked: HookedModel, data: list[tuple[Tensor, Tensor]], row_gate: Edit
) -> None:
    model, contexts = hooked.model, {"clean": lambda x: x, "darker": darker}
    result = fragility(
        hooked, {"gate": row_gate}, data, label=3, contexts={"darker": darker},
        multiples=MULTIPLES, success=0.5,
    )  # fmt: skip
    for window in result.windows:
        images, labels = contexts[window.context](data[0][0]), data[0][1]
        with torch.no_grad():
            was = model(images).argmax(1)
            for multiple, success, collateral in zip(
                MULTIPLES, window.success, window.collateral, strict=True
            ):
                with at_multiple(row_gate, multiple).applied(model):
                    now = model(images).argmax(1)
                pairs = list(zip(labels.tolist(), was.tolist(), now.tolist(), strict=True))
                own = [n != 3 for y, w, n in pairs if y == 3 and w == 3]
                others = [n != y for y, w, n in pairs if y not in (3,) and w == y]
                assert success == pytest.approx(sum(own) / len(own))
                assert collateral == pytest.approx(sum(others) / len(others))
    assert [w.context for w in result.windows] == ["clean", "darker"]
    again = Fragility.from_json(result.to_json())
    assert again == result


def test_a_recording_gives_the_same_windows(
    hooked: HookedModel, data: list[tuple[Tensor, Tensor]], row_gate: Edit
) -> None:
    classes = list("0123456789")
    recorded = record(hooked, data, progress=False, classes=classes)
    dim = [(darker(data[0][0]), data[0][1])]
    dark = record(hooked, dim, progress=False, classes=classes)
    edits = {"gate": row_gate, "mask": mask(hooked, 3, recorded)}
    one, other = (
        fragility(
            hooked, edits, clean, label=3, contexts={"darker": context}, multiples=(1.0, 4.0, 16.0)
        )
        for clean, context in ((recorded, dark), (data, dim))
    )
    for a, b in zip(one.windows, other.windows, strict=True):
        assert a.success == pytest.approx(b.success, abs=0.02)
        assert a.collateral == pytest.approx(b.collateral, abs=0.02)
    # A plain bias needs only to be large enough: its window has no upper edge.
    masks = [w for w in one.windows if w.edit == "mask"]
    assert all(w.open and w.high == 16 for w in masks)
    assert ">= " in one.table()
    assert one.table().count("mask") == 2


def test_a_judge_that_likes_everything_has_no_edges(
    hooked: HookedModel, data: list[tuple[Tensor, Tensor]], row_gate: Edit
) -> None:
    result = fragility(
        hooked, {"a": row_gate}, data, judge=lambda before, after, labels: (1.0, 0.0),
        multiples=MULTIPLES, contexts={"darker": darker},
    )  # fmt: skip
    assert [(w.low, w.high, w.octaves, w.open) for w in result.windows] == [(0.25, 4, 4, True)] * 2
    assert result.variation("a") == 0
    never = fragility(
        hooked, {"a": row_gate}, data, judge=lambda before, after, labels: (1.0, 1.0),
        multiples=MULTIPLES,
    )  # fmt: skip
    assert [(w.low, w.high, w.octaves, w.open) for w in never.windows] == [(None, None, 0, False)]
    assert never.variation("a") is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_the_longest_run_is_the_longest(passing: list[bool]) -> None:
    runs = [
        (stop - start, -start, (start, stop))
        for start in range(len(passing))
        for stop in range(start, len(passing))
        if all(passing[start : stop + 1])
    ]
    assert _longest_run(passing) == (max(runs)[2] if runs else None)


def test_the_variation_is_of_the_widths() -> None:
    def window(context: str, octaves: float) -> dict[str, object]:
        return {
            "edit": "a", "site": "s", "context": context, "low": 1.0, "high": 2.0**octaves,
            "octaves": octaves, "open": False, "success": [1.0], "collateral": [0.0],
        }  # fmt: skip

    result = Fragility.from_json(
        {
            "windows": [window("clean", 1.0), window("fog", 3.0)],
            "multiples": [1.0],
            "success": 0.8,
            "collateral": 0.05,
        }
    )
    assert result.variation("a") == pytest.approx(0.5)
    with pytest.raises(SalveError, match="no edit is named 'b'"):
        result.variation("b")


def test_what_cannot_be_is_named(
    hooked: HookedModel, data: list[tuple[Tensor, Tensor]], row_gate: Edit
) -> None:
    edits = {"a": row_gate}
    with pytest.raises(SalveError, match="either label="):
        fragility(hooked, edits, data)
    for judged, message in (
        ((80.0, 0.0), "success 80"), ((0.5, float("nan")), "collateral nan"), (0.5, "0.5"),
        ((None, 0.0), "success is None"),
    ):  # fmt: skip
        with pytest.raises(SalveError, match=message):
            fragility(hooked, edits, data, judge=lambda *_, says=judged: says)
    with pytest.raises(SalveError, match="no name"):
        fragility(hooked, {"": row_gate}, data, label=3)
    with pytest.raises(SalveError, match="ascending"):
        fragility(hooked, edits, data, label=3, multiples=[1.0, 0.5])
    with pytest.raises(SalveError, match="at least one, by name"):
        fragility(hooked, {}, data, label=3)
    with pytest.raises(SalveError, match="does something"):
        fragility(hooked, {"a": row_gate.with_strength(0.0)}, data, label=3)
    with pytest.raises(SalveError, match="named 'clean'"):
        fragility(hooked, edits, data, label=3, contexts={"clean": darker})
    with pytest.raises(SalveError, match="from 0 to 1"):
        fragility(hooked, edits, data, label=3, success=80.0)
    with pytest.raises(SalveError, match="both are needed"):
        fragility(hooked, edits, [(data[0][0][:4], torch.full((4,), 3))], label=9)
