"""Streaming sums, ranks and verdicts: invariants on whatever is drawn."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import recounted
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import small_assessment
from torch import Tensor

from salve_plugin import Assessment
from salve_plugin.control.assessment.batches import Batch, Batches, Head
from salve_plugin.control.assessment.budget import parameter_budget
from salve_plugin.control.assessment.controls import controls_of_class, ground_of
from salve_plugin.control.assessment.tally import Reference, Tally, divergence
from salve_plugin.control.assessment.verdict import best_control, points
from salve_plugin.errors import InputError


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 30), st.integers(1, 17),
    st.sampled_from([1.0, 30.0]),
)  # fmt: skip
def test_pieces_of_any_size_give_what_the_whole_gives(
    seed: int, classes: int, images: int, size: int, scale: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Far from zero, so that a sum of squares would have cancelled.
    before = 1e6 + scale * torch.randn(images, classes, generator=draw, dtype=torch.float64)
    after = before + torch.randn(images, classes, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (images,), generator=draw)
    labels[0] = 0
    tally, base = Tally(classes, 0, keep=True), Tally(classes, 0)
    for start in range(0, images, size):
        part = slice(start, start + size)
        reference = Reference(labels[part], before[part], 0)
        tally.add(reference, after[part])
        base.add(reference, before[part])
    assert tally.spread.numpy() == pytest.approx(after.numpy().std(0), rel=1e-6, abs=1e-9)
    assert torch.cat(tally.predicted).tolist() == after.argmax(1).tolist()
    found = tally.effect(base.evaluation, None).to_json()
    expected = recounted.effect(labels.numpy(), before.numpy() - 1e6, after.numpy() - 1e6, 0)
    for name in ("kl_others", "others", "target", "worst", "accuracy"):
        assert found[name] == (
            None if expected[name] is None else pytest.approx(expected[name], rel=1e-6, abs=1e-8)
        )
    assert base.effect(base.evaluation, None).kl_others in (None, 0.0)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_a_divergence_is_not_negative_and_nothing_of_itself(seed: int, classes: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    p, q = (
        (40 * torch.randn(5, classes, generator=draw, dtype=torch.float64)).log_softmax(1)
        for _ in range(2)
    )
    assert bool((divergence(p, q) >= 0).all())
    assert divergence(p, p).tolist() == [0.0] * 5
    assert divergence(p, q).numpy() == pytest.approx(
        recounted.kl(p.exp().numpy(), np.maximum(q.exp().numpy(), 1e-300)), rel=1e-6, abs=1e-9
    )


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 10_000), st.integers(0, 4), st.sampled_from([torch.float32, torch.float16]))
def test_the_rank_is_that_of_the_change_and_not_of_its_rounding(
    seed: int, rank: int, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(9, 12, generator=draw, dtype=torch.float64).to(dtype)
    left, _ = torch.linalg.qr(torch.randn(9, 4, generator=draw, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(12, 4, generator=draw, dtype=torch.float64))
    exact = weight.double() + left[:, :rank] @ right[:, :rank].T
    found = parameter_budget("fc.weight", weight, exact.to(dtype))
    assert found.rank == rank
    assert found.norm == pytest.approx(rank**0.5, abs=0.05)
    assert found.changed == int((weight != exact.to(dtype)).sum())


def test_a_change_of_nothing_has_no_rank_and_that_of_nothing_no_relative_norm() -> None:
    zero = torch.zeros(3)
    same = parameter_budget("fc.bias", zero, zero)
    assert (same.changed, same.norm, same.rank, same.relative) == (0, 0.0, 0, None)
    assert parameter_budget("fc.bias", zero, torch.ones(3)).rank == 1


def with_controls(edit: float, mask: float, worst: float) -> Assessment:
    """An assessment whose edit and mask reach these accuracies of the target."""
    base = small_assessment()
    target = replace(base.classes[0], accuracy=(1.0, edit))
    other = replace(base.classes[1], accuracy=(0.5, 0.5))
    effect = replace(
        base.effect, target=edit, others=0.0, worst=0.0, accuracy=(edit * 2 + 0.5 * 2) / 4
    )
    masked = replace(base.controls[0], effect=replace(effect, target=mask, worst=worst))
    return replace(base, classes=(target, other), effect=effect, controls=(masked,))


@pytest.mark.parametrize(
    ("edit", "mask", "worst", "rival", "words"),
    [
        (0.02, 0.02, 0.0, "mask", "a plain bias does as well: 2.0 %"),
        (0.02, 0.025, -0.005, "mask", "a plain bias does as well"),
        (0.02, 0.0, 0.0, "mask", "a plain bias does better"),
        (0.02, 0.0, -0.01, None, "none of the 1 controls does as well"),
        (0.02, 0.03, 0.0, None, "none of the 1 controls does as well"),
        (0.8, 0.0, 0.0, "mask", "is weakened, not removed"),
        (1.0, 0.0, 0.0, None, "is not suppressed: 100.0 %"),
    ],
)
def test_a_control_that_is_as_good_to_half_a_point_is_named(
    edit: float, mask: float, worst: float, rival: str | None, words: str
) -> None:
    found = with_controls(edit, mask, worst)
    assert best_control(found) == rival
    assert words in found.verdict
    # Of what does nothing itself it is not said that others do no better.
    assert ("none of the" in found.verdict) is (rival is None and edit < 1)
    assert found.verdict.endswith(".")
    assert "\n" not in found.verdict


def test_removed_is_never_said_of_an_edit_of_the_classifier() -> None:
    found = with_controls(0.0, 0.0, 0.0)
    assert found.verdict.count("removed") == found.verdict.count("not removed") == 1


def test_nothing_is_not_shown_as_a_loss() -> None:
    assert [points(each) for each in (-0.0001, 0.0, 0.0004)] == ["+0.0 points"] * 3


def test_parts_that_contradict_each_other_are_refused() -> None:
    base = small_assessment()
    for change in (
        {"target": None},
        {"target_before": None},
        {"concept": None, "effect": replace(base.effect, ideal=None)},
        {"controls": (replace(base.controls[0], effect=replace(base.effect, target=None)),)},
        {"accuracy": 0.7},
        {"images": 3},
        {"classes": base.classes[::-1]},
    ):
        with pytest.raises(InputError):
            replace(base, **change)
    with pytest.raises(InputError, match="has 0 images"):
        replace(base.classes[0], count=0)


class Mixed(Batches):
    """Two batches, of which the second has no one input an image."""

    images = None

    def labels(self) -> Tensor:
        return torch.arange(8) % 2

    def __iter__(self) -> Iterator[Batch]:
        """Yield both."""
        logits, labels = torch.randn(4, 2, dtype=torch.float64), torch.arange(4) % 2
        for inputs in (torch.randn(4, 3), None):
            yield Batch(labels, logits, logits, inputs)


def test_where_some_inputs_are_not_known_no_control_is_made_of_them() -> None:
    head = Head(torch.randn(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    edited = Head(head.weight / 2, head.bias)
    ground = ground_of(Mixed(), head, edited, lambda labels, _: labels == 1)
    assert (ground.mean, ground.difference) == (None, None)
    made = controls_of_class(ground, 1, 0, None)
    assert [control.name for control in made] == ["mask", "zero row"]
    for batch in Mixed():
        assert all(control.logits(batch).shape == (4, 2) for control in made)
