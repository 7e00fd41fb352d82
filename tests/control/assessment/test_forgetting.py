"""Probes, relearning and neighbours: a head edit leaves everything known, an eraser does not."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import salve_plugin as salve
from salve_plugin import Edit, Gate, HookedModel, LowRankMap
from salve_plugin.control.assessment.batches import Head
from salve_plugin.control.assessment.probe import probe
from salve_plugin.control.assessment.relearning import relearned
from salve_plugin.demo import digits
from salve_plugin.errors import InputError

SITE = "blocks.1.mlp.hook_post"


@pytest.fixture(scope="module")
def erased(vit: HookedModel, digits_test: digits.Split) -> Edit:
    """Class 0 projected out at a hidden layer of the ViT: of the class token and of the patches.

    Where the means of two kinds are equal, least squares finds nothing.
    """
    _, cache = vit.run_with_cache(digits_test.images, names_filter=SITE)
    x, mark = cache[SITE].detach().double(), digits_test.labels == 0
    pooled = (x[:, 0], x[:, 1:].mean(1))
    gaps = torch.stack([part[mark].mean(0) - part[~mark].mean(0) for part in pooled], 1)
    basis, _ = torch.linalg.qr(gaps)
    centre = x.flatten(0, 1).mean(0) @ basis
    return salve.edit_at(vit, SITE, LowRankMap(basis, basis, centre, 0.0))


@pytest.fixture(scope="module")
def suppressed(vit: HookedModel) -> Edit:
    """The row of class 0 in the classifier, gone."""
    width = vit.site("unembed.hook_in").width
    everywhere = torch.full((1, width), width**-0.5, dtype=torch.float64)
    return salve.edit_at(vit, "unembed.hook_in", Gate(everywhere, 1e3), rows=[0])


def test_a_head_edit_leaves_everything_known_and_is_learned_back_in_a_step_or_two(
    vit: HookedModel, suppressed: Edit, digits_test: digits.Split
) -> None:
    found = salve.forgetting(vit, suppressed, digits_test.batches(), target=0, steps=[0, 5, 50])
    features, logits = found.recovery
    assert (features.site, logits.site) == ("unembed.hook_in", "logits")
    assert features.after == features.before
    assert features.after.accuracy > 0.95
    assert not features.removed
    assert found.neighbours is not None
    assert found.neighbours[0] == found.neighbours[1] > 0.9 > 0.2 > found.neighbours_chance
    assert found.relearned[0] < 0.5 < found.relearned[-1]
    assert found.relearned[0] == found.fresh[0]  # a row that is gone is a fresh one
    assert "removed nowhere" in found.verdict
    assert found == salve.forgetting(
        vit, suppressed, digits_test.batches(50), target=0, steps=[0, 5, 50]
    )


def test_an_eraser_removes_at_its_site_and_later_layers_are_asked(
    vit: HookedModel, erased: Edit, suppressed: Edit, digits_test: digits.Split
) -> None:
    found = salve.forgetting(vit, erased, digits_test.batches(), target=0)
    assert [row.site for row in found.recovery][-2:] == ["unembed.hook_in", "logits"]
    assert len(found.recovery) > 3
    first = found.recovery[0]
    assert first.before.accuracy > 0.9
    assert first.removed
    assert first.after.low <= first.after.accuracy <= first.after.high
    assert not found.recovery[-2].removed  # the residual stream has it from elsewhere
    assert "Removed at blocks.1.mlp.hook_post" in found.verdict
    assert "still known at unembed.hook_in" in found.verdict
    head = salve.forgetting(vit, suppressed, digits_test.batches(), target=0, steps=[0, 5])
    table = salve.forgetting_table([head, found])
    assert [line for line in table.splitlines() if line.startswith("probe at unembed.hook_in")]
    assert table.count("removed nowhere") == 1
    assert found.to_json()["steps"] == (0, 1, 5, 20, 100)


def test_a_concept_is_probed_by_its_flags(
    vit: HookedModel, suppressed: Edit, digits_test: digits.Split
) -> None:
    flags = digits_test.labels % 2 == 0
    found = salve.forgetting(vit, suppressed, digits_test.batches(), has=flags)
    assert found.relearned == found.fresh == ()
    assert found.recovery[0].after.accuracy > 0.8
    with pytest.raises(InputError, match="one of them"):
        salve.forgetting(vit, suppressed, digits_test.batches())
    with pytest.raises(InputError, match="one truth value for each of 360"):
        salve.forgetting(vit, suppressed, digits_test.batches(), has=[True, False])
    with pytest.raises(InputError, match="too few for a probe"):
        salve.forgetting(vit, suppressed, digits_test.batches(), has=torch.arange(360) < 3)
    with pytest.raises(InputError, match="numbers of steps"):
        salve.forgetting(vit, suppressed, digits_test.batches(), target=0, steps=[])


def test_a_concept_that_goes_with_classes_is_measured_against_what_they_tell(
    vit: HookedModel, suppressed: Edit, digits_test: digits.Split
) -> None:
    # A dark corner in nearly all pictures of five digits, and in few of the others.
    often = torch.where(digits_test.labels < 5, 0.9, 0.1)
    has = torch.rand(360, generator=torch.Generator().manual_seed(0)) < often
    images = torch.where(has[:, None, None, None], digits_test.images, 0)
    images[:, :, 8:] = digits_test.images[:, :, 8:]
    images[:, :, :, 8:] = digits_test.images[:, :, :, 8:]
    loader = [(images, digits_test.labels)]
    acts = salve.record(vit, loader, site=SITE, progress=False, classes=digits.CLASSES)
    erased = salve.erase(vit, salve.find_concept(acts, has))
    sites = [SITE, "unembed.hook_in"]
    kept, gone = (
        salve.forgetting(vit, edit, loader, has=has, sites=sites) for edit in (suppressed, erased)
    )
    at, last = gone.recovery[0], gone.recovery[-2]
    assert at.of_classes is not None
    assert at.chance < 0.6 < 0.7 < at.of_classes < at.before.accuracy - 0.05
    assert at.left_to_classes
    assert at.removed
    assert not last.removed
    assert f"Removed at {SITE}, beyond what the classes tell of it, but still" in gone.verdict
    assert "classes alone" in salve.forgetting_table([gone])
    assert "removed nowhere" in kept.verdict


def test_where_the_classes_tell_everything_nothing_is_called_removed(
    vit: HookedModel, suppressed: Edit, digits_test: digits.Split
) -> None:
    loader = list(digits_test.batches())
    found = salve.forgetting(vit, suppressed, loader, has=digits_test.labels % 2 == 0)
    assert found.recovery[0].of_classes == found.recovery[0].after.accuracy
    assert not found.recovery[0].removed
    by_class = salve.forgetting(vit, suppressed, loader, target=0, steps=[0])
    assert {row.of_classes for row in by_class.recovery} == {None}


def drawn(seed: int, images: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, width, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([(120, 5), (60, 90)]), st.floats(0.01, 100))
def test_a_probe_finds_what_is_there_nothing_else_and_asks_no_unit(
    seed: int, shape: tuple[int, int], unit: float
) -> None:
    x = drawn(seed, *shape)
    marked = torch.arange(shape[0]) % 3 == 0
    planted = x.clone()
    planted[marked, 1] += 12
    found = probe(planted, marked)
    assert found.accuracy > 0.9
    assert 0 <= found.low < found.accuracy <= found.high <= 1
    moved = probe(planted * unit + 7, marked)
    assert moved.accuracy == pytest.approx(found.accuracy, abs=0.03)
    nothing = np.mean([probe(drawn(seed + at, *shape), marked, at).accuracy for at in range(4)])
    assert abs(nothing - 0.5) < 0.15


def test_both_sides_of_the_ridge_agree_and_a_constant_feature_tells_nothing() -> None:
    from salve_plugin.control.assessment.probe import _ridge

    x, marked = drawn(3, 30, 12), torch.arange(30) % 2 == 0
    x[:, 4] = 2.5
    tall = _ridge(x, marked, 0.1, False)
    # The same features thrice, and a penalty that comes to the same: now there are more than rows.
    wide = _ridge(torch.cat([x] * 3, 1), marked, 0.3, False)
    assert torch.allclose(wide[0].reshape(3, 12).sum(0), tall[0], atol=1e-10)
    assert wide[1] == pytest.approx(float(tall[1]), abs=1e-10)
    assert tall[0][4] == 0


def test_relearning_descends_by_the_gradient_that_autograd_has() -> None:
    x, labels = drawn(5, 40, 6), torch.arange(40) % 3
    weight, bias = drawn(6, 3, 6), drawn(7, 1, 3)[0]
    (start, one) = relearned(Head(weight, bias), x, labels, (x, labels), 1, (0, 1))
    centre = x.mean(0)
    leaf = weight.clone().requires_grad_()
    offset = (bias + weight @ centre).requires_grad_()
    logits = (x - centre) @ leaf.T + offset
    loss = torch.nn.functional.cross_entropy(logits, labels)
    slope, shift = torch.autograd.grad(loss, [leaf, offset])
    joint = torch.cat([x - centre, torch.ones(40, 1, dtype=torch.float64)], 1)
    rate = 2 / float(torch.linalg.eigvalsh(joint.T @ joint / 40)[-1])
    stepped = (x - centre) @ (leaf - rate * slope).T + offset - rate * shift
    mine = labels == 1
    assert start == float((logits.argmax(1)[mine] == 1).double().mean())
    assert one == float((stepped.argmax(1)[mine] == 1).double().mean())
    assert not math.isnan(one)


def test_what_cannot_be_probed_is_refused_in_words(
    vit: HookedModel, suppressed: Edit, digits_test: digits.Split
) -> None:
    images, labels = digits_test.images.clone(), digits_test.labels.clone()
    several: list[Any] = [[], "unembed.hook_in"]
    for sites in several:
        with pytest.raises(InputError, match="a list of at least one name"):
            salve.forgetting(vit, suppressed, [(images, labels)], target=0, sites=sites)
    labels[5] = 12
    with pytest.raises(InputError, match="label 12 in batch 0"):
        salve.forgetting(vit, suppressed, [(images, labels)], target=0, steps=[0])
    labels[5] = 0
    images[3] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        salve.forgetting(vit, suppressed, [(images, labels)], target=0, steps=[0])
    with pytest.raises(InputError, match="take the model in float32"):
        probe(torch.full((40, 2), torch.inf, dtype=torch.float64), torch.arange(40) < 20)
