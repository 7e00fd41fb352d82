"""KL-matched strengths: the target is hit, at the head and inside, with every kind of edit."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin import (
    Edit,
    Gate,
    LowRankMap,
    SalveError,
    edit_at,
    erase,
    find_concept,
    mask,
    record,
    with_kl,
)
from salve_plugin.control.comparing.matched import _bracket
from salve_plugin.control.comparing.responses import mean_kl

HEAD = "unembed.hook_in"


def divergence(patched: SimpleNamespace, edit: Edit, images: Tensor) -> float:
    """Return the mean KL by the definition, image by image."""
    model = patched.hooked.model
    with torch.no_grad():
        p = model(images).double().softmax(1)
        with edit.applied(model):
            q = model(images).double().softmax(1)
    return sum(float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)) / len(images)


def gate(patched: SimpleNamespace) -> Edit:
    width = patched.hooked.sites[HEAD].width
    atom = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    return edit_at(patched.hooked, HEAD, Gate(atom / atom.norm(), 1.0))


@pytest.mark.parametrize("target", [0.01, 0.1])
def test_a_gate_a_map_and_a_mask_meet_the_same_budget(
    patched: SimpleNamespace, target: float
) -> None:
    hooked, loader = patched.hooked, [(patched.plain[:72], torch.arange(72) % 10)]
    recorded = record(hooked, loader, progress=False, classes=list("0123456789"))
    masked = mask(hooked, 3, recorded)
    for edit in (gate(patched), erase(hooked, patched.concept), masked):
        matched = with_kl(hooked, edit, recorded, target, most=100.0)
        assert divergence(patched, matched, patched.plain[:72]) == pytest.approx(target, rel=0.011)


def test_a_hidden_edit_meets_it_too_and_the_model_keeps_its_bits(patched: SimpleNamespace) -> None:
    hooked, model = patched.hooked, patched.hooked.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recordings = [patched.recorded[patched.hidden, kind] for kind in ("with", "without")]
    concept = find_concept(recordings[0], without=recordings[1])
    edit = erase(hooked, concept, "directional_ablation")
    loader = [(patched.plain[:24], torch.arange(24) % 10)]
    reach = divergence(patched, edit, patched.plain[:24])
    matched = with_kl(hooked, edit, loader, reach / 3, tolerance=0.02)
    assert divergence(patched, matched, patched.plain[:24]) == pytest.approx(reach / 3, rel=0.021)
    assert isinstance(matched.operator, LowRankMap)
    assert 0 < matched.operator.scale < 1
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_recording_and_a_loader_give_the_same_strength(patched: SimpleNamespace) -> None:
    loader = [(patched.plain[:40], torch.arange(40) % 10)]
    recorded = record(patched.hooked, loader, progress=False, classes=list("0123456789"))
    one, other = (
        with_kl(patched.hooked, gate(patched), data, 0.05, tolerance=1e-3)
        for data in (recorded, loader)
    )
    assert one.gate.strength == pytest.approx(other.gate.strength, rel=1e-2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=12, max_size=12), st.floats(0.01, 5), st.floats(0.1, 64))
def test_neighbours_enclose_the_target_though_it_may_rise_and_fall(
    heights: list[float], target: float, most: float
) -> None:
    def wavy(multiple: float) -> float:
        # Continuous, 0 at 0, of any shape in between.
        position = min(11.0, 4 * multiple)
        low = int(position)
        knots = [0.0, *heights]
        return knots[low] + (position - low) * (knots[low + 1] - knots[low])

    grid = [min(2.0**step, most) for step in range(7)]
    if max(map(wavy, [*grid, min(1.0, most)])) < target:
        with pytest.raises(SalveError, match="at most"):
            _bracket(wavy, target, most)
        return
    low, high = _bracket(wavy, target, most)
    assert 0 <= low < high <= most
    assert wavy(low) < target <= wavy(high)


def test_equal_answers_diverge_by_nothing() -> None:
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).double() * 30
    assert mean_kl(logits, logits) == 0
    assert mean_kl(logits, logits + 5) == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_reached_is_named(patched: SimpleNamespace) -> None:
    hooked, edit = patched.hooked, gate(patched)
    loader = [(patched.plain[:16], torch.arange(16) % 10)]
    with pytest.raises(SalveError, match="never 50"):
        with_kl(hooked, edit, loader, 50.0, most=2.0)
    with pytest.raises(SalveError, match="rounded too coarsely"):
        with_kl(hooked, edit, loader, 0.05, tolerance=1e-13)
    with pytest.raises(SalveError, match="changes nothing"):
        with_kl(hooked, edit.with_strength(0.0), loader, 0.1)
    with pytest.raises(SalveError, match="kl 0"):
        with_kl(hooked, edit, loader, 0.0)
    with pytest.raises(SalveError, match="read again"):
        with_kl(hooked, edit, iter(loader), 0.1)
    hidden = patched.recorded[patched.hidden, "without"]
    with pytest.raises(SalveError, match="classifier"):
        with_kl(hooked, edit, hidden, 0.1)
    labels = iter([torch.arange(16) % 10, (torch.arange(16) + 1) % 10] * 40)

    class Shuffled(list[int]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter([(patched.plain[:16], next(labels))])

    with pytest.raises(SalveError, match="shuffling"):
        with_kl(hooked, edit, Shuffled(), 0.1)
