"""What compares edits runs every model: of any type, of one logit, and images that do not fit."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin.control.comparing.responses import Responses

IMAGES = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 2


def attached(dtype: torch.dtype, n_logits: int = 2) -> tuple[salve.HookedModel, salve.Edit]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model("test_resnet", num_classes=n_logits)
        model.fc.weight.data.normal_()
    hooked = salve.attach(model.to(dtype).eval())
    width = hooked.sites["unembed.hook_in"].width
    gate = salve.Gate(torch.ones(1, width) / width**0.5, 3.0)
    return hooked, salve.edit_at(hooked, "unembed.hook_in", gate)


def counted(before: Tensor, after: Tensor, labels: Tensor) -> tuple[float, float]:
    return float((before.argmax(1) == labels).double().mean()), 0.0


COMPARED: dict[str, Callable[[salve.HookedModel, salve.Edit, Tensor], object]] = {
    "fragility": lambda hooked, edit, images: salve.fragility(
        hooked, {"gate": edit}, batches(images), judge=counted, multiples=(0.5, 1.0)
    ),
    "with_kl": lambda hooked, edit, images: salve.with_kl(hooked, edit, batches(images), 0.01),
    "learn_scales": lambda hooked, edit, images: salve.learn_scales(
        hooked, [edit], batches(images)
    ),
}
REPAIRED: dict[str, Callable[[salve.HookedModel, salve.Edit, Tensor], object]] = {
    "self_repair": lambda hooked, edit, images: salve.self_repair(hooked, edit, images, 0)
}


def batches(images: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return [(images, LABELS)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", COMPARED | REPAIRED)
def test_images_are_cast_to_the_models_type(name: str, dtype: torch.dtype) -> None:
    (COMPARED | REPAIRED)[name](*attached(dtype), IMAGES)


@pytest.mark.parametrize("name", COMPARED | REPAIRED)
def test_images_that_do_not_fit_are_refused_in_words(name: str) -> None:
    with pytest.raises(salve.SalveError, match=r"does not take .* expected are images"):
        (COMPARED | REPAIRED)[name](*attached(torch.float32), IMAGES[:, :1])


@pytest.mark.parametrize("name", COMPARED)
def test_one_logit_is_a_choice_of_two(name: str) -> None:
    COMPARED[name](*attached(torch.float32, n_logits=1), IMAGES)


def test_its_divergence_is_that_of_the_probability() -> None:
    hooked, edit = attached(torch.float64, n_logits=1)
    some = salve.with_kl(hooked, edit, batches(IMAGES), 0.01, tolerance=1e-6)
    with torch.no_grad():
        p = hooked(IMAGES.double()).sigmoid()
        with some.applied(hooked):
            q = hooked(IMAGES.double()).sigmoid()
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(divergence) == pytest.approx(0.01, rel=1e-5)


def test_a_budget_needs_no_classes() -> None:
    hooked, _ = attached(torch.float32)
    strange = [(IMAGES, LABELS + 7)]
    assert len(Responses.of(hooked, strange, by_class=False).base) == len(IMAGES)
    with pytest.raises(salve.SalveError, match=r"label 7 .* out of range"):
        Responses.of(hooked, strange, by_class=True)


def test_a_recording_is_compared_in_its_own_type_in_an_autocast_region() -> None:
    hooked, edit = attached(torch.float32)
    acts = salve.record(hooked, batches(IMAGES), progress=False)
    seen: list[Tensor] = []

    def judge(before: Tensor, after: Tensor, labels: Tensor) -> tuple[float, float]:
        seen.append(after)
        return 0.0, 0.0

    def compared() -> salve.Edit:
        salve.fragility(hooked, {"gate": edit}, acts, judge=judge, multiples=(0.5, 1.0))
        return salve.with_kl(hooked, edit, acts, 0.01, tolerance=1e-3)

    found = compared()
    with torch.autocast("cpu", torch.bfloat16):
        assert compared() == found
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scales_are_learnt_in_any_mode(mode: Callable[[], Any]) -> None:
    hooked, edit = attached(torch.float32)
    learnt = salve.learn_scales(hooked, [edit], batches(IMAGES))
    with mode():
        again = salve.learn_scales(hooked, [edit], batches(IMAGES))
    assert torch.equal(learnt.scales[0], again.scales[0])
