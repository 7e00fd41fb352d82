"""What an edit does to a concept: pairs, groups, and accuracy with and without it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin import Edit, HookedModel, LowRankMap
from salve_plugin.demo import digits
from salve_plugin.errors import InputError

Pictures = tuple[Tensor, Tensor, Tensor]
"""Pictures without a patch, the same with it, and their labels."""


@pytest.fixture(scope="module")
def patched(digits_test: digits.Split) -> Pictures:
    """120 digits and the same ones with a bright patch in a corner."""
    images, labels = digits_test.images[:120], digits_test.labels[:120]
    marked = images.clone()
    marked[:, :, :10, :10] = images.max()
    return images, marked, labels


@pytest.fixture(scope="module")
def projected(resnet: HookedModel, patched: Pictures) -> Edit:
    """The head edit that projects out the difference that the patch makes, and keeps the mean."""
    plain, marked = (features(resnet, images) for images in patched[:2])
    unit = (marked - plain).mean(0)
    unit = (unit / unit.norm())[:, None]
    centre = torch.cat([marked, plain]).mean(0) @ unit
    return salve.edit_at(resnet, "unembed.hook_in", LowRankMap(unit, unit, centre, 0.0))


def features(hooked: HookedModel, images: Tensor) -> Tensor:
    _, cache = hooked.run_with_cache(images, names_filter="unembed.hook_in")
    activation: Tensor = cache["unembed.hook_in"]
    return activation.detach().double()


def batches(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(images, 50), torch.split(labels, 50), strict=True))


def predicted(hooked: HookedModel, edit: Edit, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        before = hooked.model(images).argmax(1)
        with edit.applied(hooked):
            return [before, hooked.model(images).argmax(1)]


def test_pairs_and_groups_are_those_of_a_recount(
    resnet: HookedModel, patched: Pictures, projected: Edit
) -> None:
    plain, marked, labels = patched
    found = salve.assess(
        resnet, projected, batches(marked, labels), counterparts=batches(plain, labels)
    )
    with_patch = predicted(resnet, projected, marked)
    without = predicted(resnet, projected, plain)
    assert found.concept is not None
    assert found.effect.concept is not None
    for at, outcome in enumerate((found.concept, found.effect.concept)):
        assert outcome.flips == float((with_patch[at] != without[at]).double().mean())
        groups = {
            (float((guess[at][labels == label] == label).double().mean()), label, has)
            for label in range(10)
            for has, guess in ((True, with_patch), (False, without))
        }
        worst = min(groups)
        assert (outcome.worst_group, outcome.worst_class, outcome.worst_has) == worst
        assert outcome.accuracy_with == float((with_patch[at] == labels).double().mean())
        assert outcome.accuracy_without == float((without[at] == labels).double().mean())
    assert found.concept.flips is not None
    assert found.concept.flips > 0.1
    assert found.images == 240
    assert (found.target, found.effect.ideal) == (None, None)
    assert [each.name for each in found.controls] == ["difference of means", "random direction"]


def test_the_difference_of_means_is_as_good_as_itself_and_the_verdict_says_so(
    resnet: HookedModel, patched: Pictures, projected: Edit
) -> None:
    plain, marked, labels = patched
    found = salve.assess(
        resnet, projected, batches(marked, labels), counterparts=batches(plain, labels)
    )
    control = found.control("difference of means").effect
    assert control.concept == found.effect.concept
    assert control.accuracy == found.effect.accuracy
    assert control.kl_others == pytest.approx(found.effect.kl_others, rel=1e-4)
    assert "the difference of means does as well" in found.verdict
    assert (
        "The concept is suppressed, not removed (the features stay as they were)" in found.verdict
    )
    assert "flips" in found.table()


def test_flags_do_for_images_without_pairs(
    resnet: HookedModel, patched: Pictures, projected: Edit
) -> None:
    plain, marked, labels = patched
    both = batches(torch.cat([marked, plain]), torch.cat([labels, labels]))
    flags = [True] * 120 + [False] * 120
    found = salve.assess(resnet, projected, both, has=flags)
    pairs = salve.assess(
        resnet, projected, batches(marked, labels), counterparts=batches(plain, labels)
    )
    assert found.effect.concept is not None
    assert pairs.effect.concept is not None
    assert found.effect.concept.flips is None
    assert found.effect.concept.worst_group == pairs.effect.concept.worst_group
    assert [each.accuracy for each in found.classes] == [each.accuracy for each in pairs.classes]
    recorded = salve.record(resnet, both, progress=False)
    again = salve.assess(resnet, projected, recorded, has=torch.tensor(flags))
    assert salve.deviations(found, again, 1e-4) == []


def test_pairs_that_are_none_are_refused(
    resnet: HookedModel, patched: Pictures, projected: Edit
) -> None:
    plain, marked, labels = patched
    first: Any = batches(marked, labels)
    with pytest.raises(InputError, match="the same images in the same order"):
        salve.assess(resnet, projected, first, counterparts=batches(plain, labels.flip(0)))
    with pytest.raises(InputError, match="the same images in the same order"):
        salve.assess(resnet, projected, first, counterparts=batches(plain[1:], labels[1:]))
