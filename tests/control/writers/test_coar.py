"""CoAR against networks whose components are known, and COAR-Edit's zeros."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_updates import draw

from salve_plugin import Activations, ComponentEdit, HookedModel, attach, coar
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.writers.attribution import attribute, margins_of, separation
from salve_plugin.demo import digits
from salve_plugin.errors import InputError


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 20))
def test_effects_of_a_linear_network_are_its_contributions(seed: int, components: int) -> None:
    parts, constant = draw(seed, components, 7), draw(seed + 1, 7)
    attribution = attribute(
        lambda mask: mask.double() @ parts + constant, components, masks=400, keep=0.7, ridge=0.0,
        seed=seed,
    )  # fmt: skip
    torch.testing.assert_close(attribution.effects, parts, rtol=1e-8, atol=1e-8)
    assert attribution.fidelity == pytest.approx(1, abs=1e-9)


def test_one_factorization_is_ridge_regression_for_each_image() -> None:
    parts, bent = draw(0, 9, 4), draw(1, 9, 4)

    def margins(mask: torch.Tensor) -> torch.Tensor:
        left = mask.double()
        return left @ parts + (left @ bent).square()

    attribution = attribute(margins, 9, masks=200, keep=0.8, ridge=0.1, seed=3)
    drawn = torch.rand(200, 9, generator=torch.Generator().manual_seed(3)) < 0.8
    design, response = drawn[20:].double(), torch.stack([margins(mask) for mask in drawn[20:]])
    # Brute force: the ridge as rows of data, and the free intercept as a column.
    amount = math.sqrt(0.1 * 180 * float(design.var(0, correction=0).mean()))
    rows = torch.cat([design, amount * torch.eye(9).double()])
    ones = torch.cat([torch.ones(180), torch.zeros(9)]).double()[:, None]
    full = torch.cat([response, torch.zeros(9, 4).double()])
    expected = torch.linalg.lstsq(torch.cat([rows, ones], 1), full).solution[:9]
    torch.testing.assert_close(attribution.effects, expected)
    assert 0.5 < attribution.fidelity < 1


def test_margins_and_separation_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 7.0]]).double()
    assert margins_of(logits, torch.tensor([0, 1])).tolist() == [1, -2]
    effects = torch.tensor([[1.0, 3.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]]).double()
    of_target = torch.tensor([True, True, False, False])
    score = separation(effects, of_target)
    assert score.tolist() == pytest.approx([1 / math.sqrt(1 / 2 + 1 / 2), 0])
    assert separation(effects, ~of_target).tolist() == pytest.approx([-score[0].item(), 0])
    with pytest.raises(InputError, match="two at least"):
        separation(effects, torch.tensor([True, False, False, False]))


@pytest.fixture
def planted(with_head: Callable[..., HookedModel]) -> tuple[HookedModel, torch.Tensor]:
    """Class 2 rests on feature 4 alone; all else is weak. With inputs to match."""
    weight = 0.05 * draw(0, 4, 6)
    weight[2, 4] = 3.0
    return with_head(weight, torch.zeros(4).double()), 1 + 0.1 * draw(1, 80, 6)


def test_the_planted_component_comes_first(planted: tuple[HookedModel, torch.Tensor]) -> None:
    hooked, x = planted
    labels = torch.arange(80) % 4
    lower = coar(hooked, (x, labels), 2, top=1, masks=300, keep=0.8)
    assert isinstance(lower, ComponentEdit)
    assert lower.components == (4,)
    assert lower.fidelity > 0.9
    raised = coar(hooked, (x, labels), labels != 2, effect="raise", top=1, masks=300, keep=0.8)
    assert raised.components == (4,)
    torch.testing.assert_close(raised.scores, -lower.scores)
    before = hooked.unembed()[0]
    with lower.edit.applied(hooked):
        after = hooked.unembed()[0]
    assert torch.equal(after, before.index_fill(1, torch.tensor([4]), 0))
    again = coar(hooked, (x, labels), 2, top=1, masks=300, keep=0.8)
    assert again.edit == lower.edit
    assert torch.equal(again.scores, lower.scores)


def test_it_lowers_the_margins_of_a_class_more_than_others(
    digits_hooked: HookedModel, digits_acts: Activations
) -> None:
    attribution = coar(digits_hooked, digits_acts, "3", top=20, masks=600)
    assert attribution.fidelity > 0.9
    x, labels = digits_acts.tensor().double(), digits_acts.labels()
    path = next(iter(digits_hooked.heads))
    weight = (
        attribution.edit.edited(digits_hooked.model).get_submodule(path).get_parameter("weight")
    )
    assert not bool(weight[:, list(attribution.components)].any())
    before, bias = (part.double() for part in digits_hooked.unembed())
    change = margins_of(x @ weight.detach().double().T + bias, labels)
    change = change - margins_of(x @ before.T + bias, labels)
    assert float(change[labels == 3].mean()) < float(change[labels != 3].mean()) - 1


def test_a_component_that_adds_nothing_tells_nothing(
    planted: tuple[HookedModel, torch.Tensor],
) -> None:
    hooked, _ = planted
    (head,) = hooked.heads
    weight = hooked.model.get_parameter(f"{head}.weight").detach()
    classes, width = weight.shape
    x = draw(1, 60, width).float()
    labels = torch.arange(60) % classes
    x[:, 1] = 0.0  # never on
    for masks in (40, 400):
        scores = coar(hooked, (x, labels), 0, top=1, masks=masks, keep=0.7).scores
        assert (scores == 0).nonzero()[:, 0].tolist() == [1]


def test_filters_within_the_network(digits_test: digits.Split) -> None:
    path = Path(__file__).parents[2] / "fixtures" / "digits_resnet.safetensors"
    hooked = attach(digits.load("resnet", path))
    keep = torch.isin(digits_test.labels, torch.tensor([3, 8]))
    images, labels = digits_test.images[keep][:16], digits_test.labels[keep][:16]
    layer = "layer4.0.downsample.0"
    attribution = coar(hooked, (images, labels), 3, top=8, layer=layer, masks=60)
    assert attribution.scores.shape == (128,)
    assert isinstance(attribution.edit.operator, LowRankUpdate)
    assert attribution.edit.rows == tuple(sorted(attribution.components))
    weight = attribution.edit.edited(hooked.model).get_submodule(layer).get_parameter("weight")
    assert not bool(weight[list(attribution.components)].any())
    with torch.no_grad():
        before = margins_of(hooked(images), labels)
        with attribution.edit.applied(hooked):
            change = margins_of(hooked(images), labels) - before
    assert float(change[labels == 3].mean()) < float(change[labels == 8].mean())


def test_bad_input_is_named(tiny: HookedModel, untyped: None) -> None:
    acts = draw(0, 8, 6), torch.arange(8) % 4
    cases: list[tuple[tuple[object, object], dict[str, object], str]] = [
        ((acts, 9), {}, "label 9"),
        ((acts, torch.tensor([True])), {}, "1. truth values for 8"),
        ((acts, torch.arange(8) == 0), {}, "two at least"),
        ((acts, 1), {"effect": "lift"}, "'lower' or 'raise'"),
        ((acts, 1), {"top": 0}, "top 0"),
        ((acts, 1), {"top": 6}, "top 6"),
        ((acts, 1), {"masks": 5}, "too few"),
        ((acts, 1), {"keep": 1.0}, "keep 1.0"),
        ((acts, 1), {"masks": 20, "ridge": 0.0, "keep": 0.99}, "more masks than components"),
        ((acts, 1), {"layer": "body"}, "reads no site"),
        ((acts, 1), {"layer": "head"}, "ablated on images"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(InputError, match=message):
            coar(tiny, *arguments, **{"top": 2, **options})  # type: ignore[arg-type] # what people may give


def test_images_that_the_network_does_not_take_are_refused_in_words(
    digits_test: digits.Split,
) -> None:
    hooked = attach(
        digits.load("vit", Path(__file__).parents[2] / "fixtures/digits_vit.safetensors")
    )
    images = digits_test.images[:8].expand(-1, 3, -1, -1)
    with pytest.raises(InputError, match="does not take"):
        coar(hooked, (images, torch.arange(8) % 2), 1, top=2, layer="blocks.0.mlp.fc1", masks=20)


def test_a_seed_stands_for_the_same_masks_whatever_the_default_type() -> None:
    def margins(mask: torch.Tensor) -> torch.Tensor:
        return mask.double()[:3]

    found = attribute(margins, 8, masks=40, keep=0.5, ridge=1e-3, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        again = attribute(margins, 8, masks=40, keep=0.5, ridge=1e-3, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.effects, again.effects)
