"""Images of several classes, or with a number to predict, from recording to edited model."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import salve_plugin as salve
from salve_plugin.discover.recording.labelling import check_labelling
from salve_plugin.errors import InputError

N = 60
IMAGES = torch.randn(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))
HOT = torch.rand(N, 4, generator=torch.Generator().manual_seed(1)) > 0.6
LOADER = [(IMAGES[:40], HOT[:40].float()), (IMAGES[40:], HOT[40:].float())]


@pytest.fixture(scope="module")
def hooked() -> salve.HookedModel:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=4).eval()
    with torch.no_grad():
        model.fc.weight.copy_(torch.randn(4, 96, generator=torch.Generator().manual_seed(2)))
    return salve.attach(model)


@pytest.fixture(scope="module")
def acts(hooked: salve.HookedModel) -> salve.Activations:
    return salve.record(hooked, LOADER, progress=False)


@pytest.fixture(scope="module")
def sae(acts: salve.Activations) -> salve.Dictionary:
    return salve.fit(acts, "l1", n_latents=6, steps=20, learning_rate=0.01)


def test_a_recording_keeps_all_labels_of_an_image(
    acts: salve.Activations, hooked: salve.HookedModel, tmp_path: Path
) -> None:
    assert acts.labelling == "multi-hot"
    assert acts.n_classes == 4
    assert torch.equal(acts.multi_hot(), HOT)

    def broken() -> Iterator[Any]:
        yield LOADER[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        salve.record(hooked, broken(), folder=tmp_path, progress=False)
    again = salve.record(hooked, LOADER, folder=tmp_path, progress=False)
    assert torch.equal(again.multi_hot(), HOT)
    assert torch.equal(again.tensor(), acts.tensor())
    assert torch.equal(salve.Activations.load(tmp_path, verify=True).multi_hot(), HOT)


def test_names_of_some_classes_put_the_columns_in_their_places(hooked: salve.HookedModel) -> None:
    loader = [(IMAGES, HOT[:, :2])]
    with pytest.raises(InputError, match="2 columns, and the model has 4 classes"):
        salve.record(hooked, loader, progress=False)
    acts = salve.record(hooked, loader, progress=False, classes=["3", "1"])
    assert torch.equal(acts.multi_hot()[:, [3, 1]], HOT[:, :2])
    assert not acts.multi_hot()[:, [0, 2]].any()


def test_the_first_batch_decides_unless_the_caller_does(hooked: salve.HookedModel) -> None:
    single = torch.nn.functional.one_hot(torch.arange(10) % 4)
    loader = [(IMAGES[:10], single), (IMAGES[10:], HOT[10:].long())]
    with pytest.raises(InputError, match=r"record\(\.\.\., labels='multi-hot'\)"):
        salve.record(hooked, loader, progress=False)
    acts = salve.record(hooked, loader, progress=False, labels="multi-hot")
    assert torch.equal(acts.multi_hot()[:10], single.bool())
    with pytest.raises(InputError, match="expected multi-hot rows"):
        salve.record(hooked, [(IMAGES[:8], torch.arange(8) % 4)], labels="multi-hot")


def test_each_class_is_profiled_against_the_images_without_it(
    acts: salve.Activations, sae: salve.Dictionary
) -> None:
    features = salve.profile(sae, acts)
    assert features.without is not None
    assert torch.equal(features.counts, HOT.sum(0))
    for label in range(4):
        one = salve.profile(sae, acts, attribute=HOT[:, label].long())
        torch.testing.assert_close(features.means[label], one.means[1])
        torch.testing.assert_close(features.without[label], one.means[0])
        torch.testing.assert_close(features.scores[label], one.scores[1])
        assert features.dominant(label) == int(one.means[1].abs().argmax())
    torch.testing.assert_close(
        features.spreads, sae.encode(acts.tensor()).double().std(0, unbiased=False)
    )
    assert "each against the images without it" in str(features)


def test_the_critical_strength_of_one_label_is_that_of_its_images(
    acts: salve.Activations, sae: salve.Dictionary, hooked: salve.HookedModel, tmp_path: Path
) -> None:
    edit = salve.suppress(hooked, sae, latent=0, strength=0.5)
    for label in range(4):
        crit = salve.alpha_crit(hooked, edit, acts, classes=[label])
        mine = HOT[:, label]
        own = [(IMAGES[mine], torch.full((int(mine.sum()),), label))]
        alone = salve.alpha_crit(hooked, edit, salve.record(hooked, own, progress=False))
        torch.testing.assert_close(crit.values, alone.values, rtol=1e-4, atol=1e-5)
        assert crit.labels.tolist() == [label] * int(mine.sum())
    salve.EditArtifact.of(hooked, edit, alpha_crit=crit, plot=False).save_pretrained(
        tmp_path / "edit"
    )
    loaded = salve.EditArtifact.from_pretrained(tmp_path / "edit").alpha_crit
    assert loaded is not None
    assert torch.equal(loaded.values, crit.values)


@settings(max_examples=15, deadline=None)
@given(st.floats(-3, 3), st.integers(1, 12))
def test_an_evaluation_counts_every_decision(threshold: float, size: int) -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = torch.randn(size, 3, 2, 2)
    hot = torch.rand(size, 3) > 0.5
    result = salve.evaluate_multi_label(model, [(images, hot)], threshold=threshold)
    with torch.no_grad():
        said = model(images) > threshold
    for label in range(3):
        right = [bool(a) == bool(b) for a, b in zip(said[:, label], hot[:, label], strict=True)]
        assert result.accuracy[label] == sum(right) / size
        mine = [ok for ok, has in zip(right, hot[:, label].tolist(), strict=True) if has]
        if mine:
            assert result.sensitivity[label] == sum(mine) / len(mine)
    weights = result.count.double() / size
    mixed = result.sensitivity.nan_to_num() * weights
    mixed += result.specificity.nan_to_num() * (1 - weights)
    torch.testing.assert_close(mixed, result.accuracy)
    assert result.to_json()["overall"] == pytest.approx(float(result.accuracy.mean()))
    assert len(str(result).splitlines()) == 5


def test_what_needs_one_class_an_image_says_so_and_names_what_does_not(
    acts: salve.Activations, sae: salve.Dictionary, hooked: salve.HookedModel
) -> None:
    edit = salve.suppress(hooked, sae, latent=0, strength=0.5)
    weight, bias = hooked.unembed()
    needs: Iterable[Callable[[], object]] = (
        acts.labels,
        acts.image_labels,
        lambda: salve.choose(hooked, salve.SuppressClass(1), acts),
        lambda: salve.choose(hooked, salve.EnhanceClass(1), acts, dictionary=sae),
        lambda: salve.assess(hooked, edit, acts),
        lambda: salve.quality(sae, acts, hooked=hooked, controls=()),
        lambda: salve.fragility(hooked, {"edit": edit}, acts, label=1),
        lambda: salve.learn_scales(hooked, [edit], [(IMAGES, HOT)]),
        lambda: salve.search_alpha_crit(hooked, edit, LOADER),
        lambda: salve.evaluate(hooked, LOADER),
        lambda: salve.assess(hooked, edit, LOADER),
    )
    for call in needs:
        with pytest.raises(InputError, match=r"one class an image is needed"):
            call()
    asked: Iterable[dict[str, Any]] = (
        {},
        {"classes": [0, 1]},
        {"classes": [0], "target": "flip"},
        {"classes": [0], "against": "predicted"},
    )
    for wrong in asked:
        with pytest.raises(InputError, match=r"classes=\[label\]"):
            salve.alpha_crit(hooked, edit, acts, **wrong)
    with pytest.raises(InputError, match="no recorded image"):
        salve.alpha_crit(hooked, edit, acts, classes=[7])
    with pytest.raises(InputError, match="column i is for output i"):
        salve.evaluate_multi_label(hooked, [(IMAGES, HOT[:, :3])])
    with pytest.raises(InputError, match="expected multi-hot rows"):
        salve.evaluate_multi_label(hooked, [(IMAGES, torch.arange(N) % 4)])
    # What needs none works.
    assert salve.quality(sae, acts, controls=()).dictionary.separability is None
    heat = salve.LayerGradFam.of(hooked, sae).attribute(IMAGES[:2], target=1)
    assert heat.shape[:2] == (2, 1)
    concept = salve.find_concept(acts, acts.multi_hot()[:, 2], name="second", dictionary=sae)
    erased = salve.erase(hooked, concept)
    assert erased.site.name == "unembed.hook_in"
    assert len(bias) == len(weight) == 4


TARGETS = torch.linspace(-2, 3, N).double()


@pytest.fixture(scope="module")
def regressor() -> salve.HookedModel:
    torch.manual_seed(0)
    return salve.attach(timm.create_model("test_resnet", num_classes=1).eval())


@pytest.fixture(scope="module")
def targets(regressor: salve.HookedModel) -> salve.Activations:
    return salve.record(regressor, [(IMAGES, TARGETS[:, None])], progress=False)


def test_it_is_recorded_fitted_explained_and_edited(
    regressor: salve.HookedModel, targets: salve.Activations
) -> None:
    assert (targets.labelling, targets.n_classes, targets.classes) == ("target", 0, None)
    assert torch.equal(targets.targets(), TARGETS)
    assert torch.equal(salve.Activations.load(targets.folder).targets(), TARGETS)
    sae = salve.fit(targets, "l1", n_latents=6, steps=20, learning_rate=0.01)
    assert salve.LayerGradFam.of(regressor, sae).attribute(IMAGES[:2], target=1).shape[0] == 2
    edit = salve.suppress(regressor, sae, latent=0, strength=0.5)
    with torch.no_grad():
        before = regressor(IMAGES)
        with edit.applied(regressor.model):
            assert not torch.equal(regressor(IMAGES), before)
        assert torch.equal(regressor(IMAGES), before)
    high = targets.targets() > 0.5
    assert salve.profile(sae, targets, attribute=high.long()).counts.tolist() == [30, 30]
    assert salve.find_concept(targets, high, name="high").n_images == N
    assert salve.quality(sae, targets, controls=()).dictionary.separability is None


def test_whole_numbers_and_zeros_and_ones_are_targets_if_that_is_said(
    regressor: salve.HookedModel,
) -> None:
    for labels in (torch.arange(N), torch.arange(N) % 2):
        targets = salve.record(regressor, [(IMAGES, labels)], progress=False, labels="target")
        assert torch.equal(targets.targets(), labels.double())


def test_what_needs_classes_says_so(
    regressor: salve.HookedModel, targets: salve.Activations
) -> None:
    sae = salve.fit(targets, "l1", n_latents=6, steps=5)
    edit = salve.suppress(regressor, sae, latent=0, strength=0.5)
    needs: Iterable[Callable[[], object]] = (
        targets.labels,
        targets.multi_hot,
        lambda: salve.profile(sae, targets),
        lambda: salve.alpha_crit(regressor, edit, targets),
        lambda: salve.assess(regressor, edit, targets),
        lambda: salve.quality(sae, targets, hooked=regressor, controls=()),
    )
    for call in needs:
        with pytest.raises(InputError, match=r"a target each \(a regression\)"):
            call()
    wrong: dict[str, Tensor] = {
        "NaN": torch.full((N,), torch.nan),
        "two columns": torch.rand(N, 2),
    }
    for labels in wrong.values():
        with pytest.raises(InputError, match="regression's targets"):
            salve.record(regressor, [(IMAGES, labels)], progress=False)


def test_targets_of_a_model_with_several_outputs_are_refused(hooked: salve.HookedModel) -> None:
    with pytest.raises(InputError, match="the model has several outputs"):
        salve.record(hooked, [(IMAGES, torch.linspace(0, 1, N))], progress=False)
    with pytest.raises(InputError, match="labels is one of"):
        check_labelling("several")
