"""Critical strengths of real recordings, against networks that are really edited."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from salve_plugin import (
    Activations,
    AlphaCrit,
    Dictionary,
    HookedModel,
    alpha_crit,
    record,
    suppress,
)
from salve_plugin.control.choosing.latent_edits import edited_weight
from salve_plugin.control.crit_summary import order_statistic
from salve_plugin.control.edit import Edit
from salve_plugin.demo import digits
from salve_plugin.errors import EditStateError, InputError
from salve_plugin.site import HEAD_INPUT

Make = Callable[..., Dictionary]


def logits_at(hooked: HookedModel, acts: Activations, edit: Edit, strength: float) -> torch.Tensor:
    weight, bias = (values.double() for values in hooked.unembed())
    moved = edited_weight(weight, edit.with_strength(strength))
    return acts.tensor().double() @ moved.T + bias


@pytest.mark.parametrize("latent", [1, [1, 4, 6]])
@pytest.mark.parametrize("rows", [None, [3, 5]])
@pytest.mark.parametrize("target", ["zero", "fraction", "flip"])
def test_just_before_it_the_image_stands_and_at_it_the_image_falls(
    digits_hooked: HookedModel,
    digits_acts: Activations,
    make_dictionary: Make,
    target: str,
    rows: list[int] | None,
    latent: int | list[int],
) -> None:
    dictionary = make_dictionary(digits_hooked.site(HEAD_INPUT))
    edit = suppress(digits_hooked, dictionary, latent=latent, strength=0.0, rows=rows)
    crit = alpha_crit(digits_hooked, edit, digits_acts, target=target, fraction=0.3)  # type: ignore[arg-type] # one of the three
    labels = digits_acts.labels()
    assert torch.equal(crit.labels, labels)
    before = logits_at(digits_hooked, digits_acts, edit, 0.0)
    assert torch.equal(crit.predicted, before.argmax(1))

    def height(logits: torch.Tensor, image: int) -> float:
        own, label = logits[image], int(labels[image])
        if target == "flip":
            return float(own[label] - torch.cat([own[:label], own[label + 1 :]]).max())
        return float(own[label] - (0.3 * before[image, label] if target == "fraction" else 0))

    finite = (crit.values.isfinite() & (crit.values > 0)).nonzero()[:, 0][:8].tolist()
    assert finite
    for image in finite:
        strength = float(crit.values[image])
        start = height(before, image)
        at = height(logits_at(digits_hooked, digits_acts, edit, strength), image)
        assert abs(at) <= 1e-6 * start
        for share in (0.5, 0.999):
            earlier = logits_at(digits_hooked, digits_acts, edit, share * strength)
            assert height(earlier, image) > 0
    never = crit.values.isinf().nonzero()[:, 0][:10].tolist()
    limit = 1e3 / float(edit.gate.reach.max())
    for strength in (1.0, 10.0, 100.0, limit):
        later = logits_at(digits_hooked, digits_acts, edit, strength)
        assert all(height(later, image) > 0 for image in never)
    assert (
        bool((crit.values[labels == 0].isinf() | (crit.values[labels == 0] == 0)).all()) or not rows
    )


def test_an_applied_edit_of_that_strength_really_takes_the_label_away(
    digits_hooked: HookedModel,
    digits_test: digits.Split,
    digits_acts: Activations,
    make_dictionary: Make,
) -> None:
    dictionary = make_dictionary(digits_hooked.site(HEAD_INPUT))
    edit = suppress(digits_hooked, dictionary, latent=1, strength=0.0)
    crit = alpha_crit(digits_hooked, edit, digits_acts, target="flip", against="predicted")
    image = int(crit.values.argmin())
    for factor, stands in ((0.999, True), (1.001, False)):
        with edit.with_strength(factor * float(crit.values[image])).applied(digits_hooked):
            predicted = digits_hooked(digits_test.images[image : image + 1]).argmax()
        assert (int(predicted) == int(crit.predicted[image])) is stands


def test_labels_can_be_named_and_the_rest_is_left_out(
    digits_hooked: HookedModel, digits_acts: Activations, make_dictionary: Make
) -> None:
    dictionary = make_dictionary(digits_hooked.site(HEAD_INPUT))
    edit = suppress(digits_hooked, dictionary, latent=1, strength=0.0)
    whole = alpha_crit(digits_hooked, edit, digits_acts)
    some = alpha_crit(digits_hooked, edit, digits_acts, classes=[7, 2])
    keep = (whole.labels == 2) | (whole.labels == 7)
    assert torch.equal(some.values, whole.values[keep])
    assert some.classes == digits.CLASSES
    with pytest.raises(InputError, match="no recorded image"):
        alpha_crit(digits_hooked, edit, digits_acts, classes=[11])
    with pytest.raises(InputError, match="no recorded image"):
        alpha_crit(digits_hooked, edit, digits_acts, classes=[10**20])


def crit_of(values: list[float], labels: list[int]) -> AlphaCrit:
    numbers = torch.tensor(values, dtype=torch.float64)
    marks = torch.tensor(labels, dtype=torch.int64)
    return AlphaCrit(numbers, numbers, marks, marks, "zero", 0.5, "label", "0" * 64)


def test_the_summary_counts_what_is_below_already_and_what_never_is() -> None:
    inf = float("inf")
    crit = crit_of([0.0, 3.0, 1.0, inf, 2.0, 7.0], [4, 4, 4, 4, 4, 9])
    four, nine = crit.summary()
    assert (four.label, four.count, four.already, four.unreachable) == (4, 5, 0.2, 0.2)
    assert four.quantiles == {
        "10 %": 0.0, "25 %": 1.0, "median": 2.0, "75 %": 3.0, "90 %": inf, "95 %": inf
    }  # fmt: skip
    assert (nine.label, nine.count, set(nine.quantiles.values())) == (9, 1, {7.0})
    json = crit.to_json()["classes"]
    assert json[0]["quantiles"]["0.9"] is None  # type: ignore[index] # JSON


def test_the_summary_of_many_classes_is_what_each_class_alone_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 40, (3000,), generator=generator) * 7
    values = (torch.rand(3000, generator=generator, dtype=torch.float64) * 50).round() / 10
    values[torch.rand(3000, generator=generator) < 0.2] = torch.inf
    values[labels == 14], values[labels == 21] = torch.inf, 0.0
    labels[0], values[0] = 5000, 1 / 3
    crit = AlphaCrit(values, values, labels, labels, "zero", 0.5, "label", "0" * 64)
    summary = crit.summary()
    assert [entry.label for entry in summary] == sorted(set(labels.tolist()))
    for entry in summary:
        own = values[labels == entry.label]
        ascending = own.sort().values
        assert entry.count == len(own)
        assert entry.already == float((own == 0).double().mean())
        assert entry.unreachable == float(own.isinf().double().mean())
        assert entry.quantiles == {
            name: float(ascending[max(0, math.ceil(level * len(own)) - 1)])
            for name, level in entry.LEVELS.items()
        }
    assert crit_of([], []).summary() == []


def test_strength_for_is_the_least_that_breaks_that_share() -> None:
    crit = crit_of([0.0, 3.0, 1.0, float("inf"), 2.0], [4] * 5)
    for share, expected in [(0.2, 0.0), (0.21, 1.0), (0.4, 1.0), (0.6, 2.0), (0.8, 3.0)]:
        assert crit.strength_for(4, share) == expected
        assert float((crit.values <= expected).double().mean()) >= share
    assert crit.strength_for(4, 1.0) == float("inf")
    with pytest.raises(InputError, match="label 5 has 0 images"):
        crit.strength_for(5, 0.5)
    with pytest.raises(InputError, match="share is 0"):
        crit.strength_for(4, 0.0)


def test_it_needs_the_heads_input_and_a_model_without_the_edit(
    digits_network: torch.nn.Module, digits_test: digits.Split, make_dictionary: Make
) -> None:
    from salve_plugin import attach

    hooked = attach(digits_network)
    images, labels = digits_test.images[:40], digits_test.labels[:40]
    acts = record(hooked, [(images, labels)], progress=False)
    site = hooked.site(HEAD_INPUT)
    edit = suppress(hooked, make_dictionary(site), latent=0, strength=1.0)
    elsewhere = replace(edit, site=replace(site, name="blocks.0.hook_resid_post"))
    with pytest.raises(InputError, match="needs the head's input"):
        alpha_crit(hooked, elsewhere, acts)
    with pytest.raises(InputError, match="fraction"):
        alpha_crit(hooked, edit, acts, target="fraction", fraction=1.0)
    with edit.applied(hooked), pytest.raises(EditStateError, match="revert it first"):
        alpha_crit(hooked, edit, acts)
    assert len(alpha_crit(hooked, edit, acts).values) == 40


def test_a_share_of_the_images_is_no_image_more_than_that() -> None:
    # 0.55 * 100 is 55.00000000000001 to floating point, and 55 images are enough.
    for share, count in ((0.55, 100), (0.07, 100), (0.28, 25), (0.95, 20), (1.0, 7)):
        assert order_statistic(count, share) == round(share * count) - 1
    assert order_statistic(100, 0.551) == 55
    assert order_statistic(3, 1e-12) == 0
