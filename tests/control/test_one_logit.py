"""A classifier with one logit is one of two classes, from its recording to the edited model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.control.evaluate import evaluate_head
from salve_plugin.errors import InputError

IMAGES = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 2


def made(n_logits: int) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=n_logits).double().eval()
    return model


@pytest.fixture(scope="module")
def twins() -> tuple[salve.HookedModel, salve.HookedModel]:
    """One logit, and the two logits -z and z of the same network."""
    one, two = made(1), made(2)
    with torch.no_grad():
        one.fc.weight.copy_(torch.randn(1, 96, generator=torch.Generator().manual_seed(1)))
        one.fc.bias.sub_(one(IMAGES.double()).quantile(0.5))  # both classes are predicted
        state = one.state_dict()
        state["fc.weight"] = torch.cat([-one.fc.weight, one.fc.weight])
        state["fc.bias"] = torch.cat([-one.fc.bias, one.fc.bias])
        two.load_state_dict(state)
    return salve.attach(one), salve.attach(two)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "integers": lambda y: y,
    "truth values": lambda y: y.bool(),
    "floats": lambda y: y.float(),
    "a column of floats": lambda y: y.double()[:, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_those_that_a_binary_loss_takes(
    form: str, twins: tuple[salve.HookedModel, salve.HookedModel]
) -> None:
    loader = [(IMAGES, FORMS[form](LABELS))]
    acts = salve.record(twins[0], loader, progress=False, classes=["healthy", "ill"])
    assert torch.equal(acts.labels(), LABELS)
    assert acts.n_classes == 2
    assert salve.evaluate(twins[0], loader).count.tolist() == [20, 20]


def test_everything_measured_is_that_of_the_two_mirrored_logits(
    twins: tuple[salve.HookedModel, salve.HookedModel],
) -> None:
    loader = [(IMAGES, LABELS)]
    results = []
    for hooked in twins:
        acts = salve.record(hooked, loader, progress=False)
        sae = salve.fit(acts, "l1", n_latents=6, steps=20, learning_rate=0.01)
        edit = salve.suppress(hooked, sae, latent=0, strength=0.5)
        weight, bias = hooked.unembed()
        flips = salve.alpha_crit(hooked, edit, acts, target="flip").values
        searched = salve.search_alpha_crit(hooked, edit, loader, target="flip", limit=5.0)
        assert bool((flips > 0).any())
        found = searched.values.isfinite()
        torch.testing.assert_close(
            searched.values[found], flips[found], rtol=0, atol=searched.tolerance
        )
        assert torch.equal(
            salve.LayerGradFam.of(hooked, sae).attribute(IMAGES[:2], 0),
            salve.LayerGradFam.of(twins[0], sae, on_base_mismatch="warn").attribute(IMAGES[:2], 0),
        )
        salve.quality(sae, acts, hooked=hooked, loader=loader, controls=())
        salve.assess(hooked, edit, loader)
        results.append(
            {
                "profile": salve.profile(sae, acts).means,
                "flips": flips,
                "falls": salve.alpha_crit(hooked, edit, acts, target="zero").values,
                "images": salve.evaluate(hooked, loader).confusion,
                "head": evaluate_head(weight, bias, acts).confusion,
            }
        )
    for quantity, value in results[0].items():
        torch.testing.assert_close(value, results[1][quantity], msg=quantity)


def test_the_threshold_is_where_the_decision_falls(
    twins: tuple[salve.HookedModel, salve.HookedModel],
) -> None:
    hooked, two = twins
    with torch.no_grad():
        logits = hooked(IMAGES.double())[:, 0]
    acts = salve.record(hooked, [(IMAGES, LABELS)], progress=False)
    for threshold in (-1.0, 0.0, float(logits.quantile(0.8))):
        said = (logits > threshold).long()
        expected = torch.zeros(2, 2, dtype=torch.int64)
        for label, prediction in zip(LABELS.tolist(), said.tolist(), strict=True):
            expected[label, prediction] += 1
        by_images = salve.evaluate(hooked, [(IMAGES, LABELS)], threshold=threshold)
        assert torch.equal(by_images.confusion, expected)
        head = hooked.unembed()
        # A recording is read in float32: no logit lies that near to the threshold.
        assert torch.equal(evaluate_head(*head, acts, threshold=threshold).confusion, expected)
    with pytest.raises(InputError, match="for a classifier with one"):
        salve.evaluate(two, [(IMAGES, LABELS)], threshold=0.5)


def test_what_one_logit_cannot_have_is_refused_with_the_way_out(
    twins: tuple[salve.HookedModel, salve.HookedModel],
) -> None:
    hooked = twins[0]
    with pytest.raises(InputError, match="0 to 1"):
        salve.record(hooked, [(IMAGES, torch.arange(40) % 3)], progress=False)
    for call in (salve.evaluate, salve.record):
        labels: Any = {} if call is salve.evaluate else {"labels": "class", "progress": False}
        with pytest.raises(InputError, match=r"\(target > limit\)\.long\(\)"):
            call(hooked, [(IMAGES, torch.linspace(0, 1, 40))], **labels)
    acts = salve.record(hooked, [(IMAGES, LABELS)], progress=False)
    with pytest.raises(InputError, match=r"one logit.*threshold="):
        salve.choose(hooked, salve.SuppressClass(1), acts)


def test_one_hot_rows_are_indices() -> None:
    hooked = salve.attach(made(4))
    index = torch.arange(40) % 4
    hot: Tensor = nn.functional.one_hot(index)
    for labels in (hot, hot.float(), hot.bool()):
        acts = salve.record(hooked, [(IMAGES, labels)], progress=False)
        assert torch.equal(acts.labels(), index)
        assert torch.equal(acts.multi_hot(), hot.bool())
    with pytest.raises(InputError, match="of the form 'class'"):
        acts.targets()


def test_its_artifact_has_both_classes(
    twins: tuple[salve.HookedModel, salve.HookedModel], tmp_path: Path
) -> None:
    acts = salve.record(twins[0], [(IMAGES, LABELS)], progress=False, classes=["healthy", "ill"])
    sae = salve.fit(acts, "l1", n_latents=6, steps=20, learning_rate=0.01)
    edit = salve.suppress(twins[0], sae, latent=0, strength=0.5)
    artifact = salve.EditArtifact.of(
        twins[0], edit, alpha_crit=salve.alpha_crit(twins[0], edit, acts),
        assessment=salve.assess(twins[0], edit, acts, target=1),
    )  # fmt: skip
    artifact.save_pretrained(tmp_path / "edit")
    read = salve.EditArtifact.from_pretrained(str(tmp_path / "edit"))
    assert list(read.labels or ()) == ["healthy", "ill"]
    assert read.alpha_crit is not None
    assert read.assessment == artifact.assessment
    with read.edit.applied(twins[0]):
        assert read.audit(None, twins[0]).proven
    with pytest.raises(InputError, match="3 labels for a classifier of 2 classes"):
        salve.EditArtifact.of(twins[0], edit, labels=["a", "b", "c"])
