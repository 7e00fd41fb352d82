"""Models of any precision with float32 images, and images that a model does not take."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

import salve_plugin as salve
from salve_plugin.control.evaluate import evaluate_head
from salve_plugin.errors import InputError, SalveError, UnsupportedModelError
from salve_plugin.images import as_input

IMAGES = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
LOADER = [(IMAGES, LABELS)]


def made(name: str) -> Any:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 32} if "vit" in name else {}
    return timm.create_model(name, num_classes=3, **size)


def mixed(model: Any) -> Any:
    """Let the forward pass run under autocast, as accelerate does."""
    plain = model.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = plain(x).float()
        return logits

    model.forward = forward
    return model


def in_inference_mode(name: str) -> Any:
    with torch.inference_mode():
        return made(name)


def results(model: nn.Module, *, edits: bool = True, acts_within: bool = True) -> dict[str, Any]:
    """Run the whole flow with float32 images; return what it measures."""
    hooked = salve.attach(model)
    with nullcontext() if acts_within else torch.autocast("cpu", enabled=False):
        acts = salve.record(hooked, LOADER, progress=False)
        cache = hooked.run_with_cache(IMAGES)[1]
    sae = salve.fit(acts, "l1", n_latents=4, steps=10, learning_rate=0.01)
    measured: dict[str, Any] = {
        "rows": next(acts.batches(100)).x,
        "atoms": sae.atoms,
        "profile": salve.profile(sae, acts).means,
        "heat": salve.LayerGradFam.of(hooked, sae).attribute(IMAGES[:2], target=0),
        "evaluate": salve.evaluate(hooked, LOADER).confusion,
        "head": evaluate_head(*hooked.unembed(), acts).confusion,
        "cache": cache["unembed.hook_in"],
        "maximize": salve.maximize(hooked, sae, 0, steps=2).activation,
    }
    salve.quality(sae, acts, hooked=hooked, loader=LOADER, controls=())
    if not edits:
        return measured
    edit = salve.suppress(hooked, sae, latent=0, strength=0.5)
    measured["alpha"] = salve.alpha_crit(hooked, edit, acts).values
    measured["search"] = salve.search_alpha_crit(hooked, edit, LOADER, steps=3, halvings=1).values
    salve.assess(hooked, edit, LOADER)
    salve.assess(hooked, edit, acts)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit.apply_(model)
    measured["edited"] = salve.evaluate(model, LOADER).confusion
    edit.revert_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return measured


MODELS: dict[str, Callable[[str], Any]] = {
    "float16": lambda name: made(name).half(),
    "bfloat16": lambda name: made(name).bfloat16(),
    "float64": lambda name: made(name).double(),
    "autocast inside": lambda name: mixed(made(name)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_whole_flow_works_in_any_precision_with_float32_images(name: str, kind: str) -> None:
    plain, other = results(made(name)), results(MODELS[kind](name))
    for quantity in ("rows", "cache"):
        wanted, got = plain[quantity].double(), other[quantity].double()
        assert got.shape == wanted.shape
        assert float((got - wanted).norm() / wanted.norm()) < 0.2, quantity


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_an_autocast_region_around_the_calls_changes_activations_alone(name: str) -> None:
    plain = results(made(name))
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(made(name), acts_within=False)
        rounded = results(made(name))["rows"]  # activations are as they are computed there
    assert 0 < float((rounded - plain["rows"]).norm() / plain["rows"].norm()) < 0.05
    for quantity, value in plain.items():
        torch.testing.assert_close(inside[quantity], value, msg=quantity, rtol=0, atol=0)


HEADS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old spectral_norm": spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),  # type: ignore[no-untyped-call] # torch leaves it untyped
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_whose_weight_is_computed_is_read_and_not_edited(kind: str) -> None:
    model = made("test_resnet").eval()
    HEADS[kind](model.fc)
    measured = results(model, edits=False)
    hooked = salve.attach(model)
    weight, bias = hooked.unembed()
    with torch.no_grad():
        torch.testing.assert_close(measured["rows"] @ weight.T + bias, model(IMAGES))
    sae = salve.fit(
        measured["rows"], "l1", n_latents=4, steps=5, site=hooked.site("unembed.hook_in")
    )
    with pytest.raises(UnsupportedModelError, match="no plain parameter"):
        salve.suppress(hooked, sae, latent=0, strength=0.5)
    if parametrize.is_parametrized(model.fc):
        parametrize.remove_parametrizations(model.fc, "weight")
        salve.suppress(salve.attach(model), sae, latent=0, strength=0.5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_model_made_in_inference_mode_is_read_and_its_copy_differentiated(name: str) -> None:
    model = in_inference_mode(name)
    hooked = salve.attach(model)
    assert hooked.attribution_site == salve.attach(made(name)).attribution_site
    acts = salve.record(hooked, LOADER, progress=False)
    salve.evaluate(model, LOADER)
    sae = salve.fit(acts, "l1", n_latents=4, steps=5)
    calls: Iterable[Callable[[], object]] = (
        lambda: salve.LayerGradFam.of(hooked, sae).attribute(IMAGES, target=0),
        lambda: salve.maximize(hooked, sae, 0, steps=1),
        lambda: hooked.run_with_cache(IMAGES),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"copy\.deepcopy"):
            call()
    with pytest.raises(UnsupportedModelError, match="inference mode"):
        salve.suppress(hooked, sae, latent=0, strength=0.5)


def test_images_made_in_inference_mode_are_as_good_as_others() -> None:
    hooked = salve.attach(made("test_resnet").eval())
    site = next(site for name, site in hooked.sites.items() if site.readers and "unembed" in name)
    acts = salve.record(hooked, LOADER, site.name, progress=False)
    edit = salve.zero_row(hooked, 1)
    with torch.inference_mode():
        images, labels = IMAGES.clone(), LABELS.clone()
    key = acts.tensor()[0]

    def learnt(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scales = salve.learn_scales(hooked, [edit], [(images, labels)])
        value = salve.rome_value(hooked, site.name, key, acts, images, 1, steps=2, ridge=0.1)
        return scales.scales[0], value

    expected, value = learnt(IMAGES, LABELS)
    for around in (nullcontext(), torch.inference_mode()):
        with around:
            scales, again = learnt(images, labels)
        assert torch.equal(scales, expected)
        assert torch.equal(again, value)


def test_a_cache_that_inference_mode_has_filled_is_no_obstacle() -> None:
    torch.manual_seed(0)
    model = timm.create_model("levit_128s", num_classes=3).eval()
    images = torch.randn(2, 3, 224, 224)
    hooked = salve.attach(model)
    width = hooked.site("unembed.hook_in").width
    sae = salve.fit(torch.randn(30, width), "l1", n_latents=3, steps=2,
                    site=hooked.site("unembed.hook_in"))  # fmt: skip
    fam = salve.LayerGradFam.of(hooked, sae)
    expected = fam.attribute(images, 0)
    with torch.inference_mode():
        model(images)
    assert torch.equal(fam.attribute(images, 0), expected)


WRONG: dict[str, Tensor] = {
    "uint8": (IMAGES * 20 + 128).byte(),
    "channels last": IMAGES.permute(0, 2, 3, 1),
    "one channel": IMAGES[:, :1],
    "complex": IMAGES.to(torch.complex64),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("around", [False, True])
def test_images_that_a_model_does_not_take_are_described(kind: str, around: bool) -> None:
    model = made("test_resnet")
    hooked, images = salve.attach(model), WRONG[kind]
    acts = salve.record(hooked, LOADER, progress=False)
    sae = salve.fit(acts, "l1", n_latents=4, steps=5)
    edit, loader = salve.suppress(hooked, sae, latent=0, strength=0.5), [(images, LABELS)]
    calls: Iterable[Callable[[], object]] = (
        lambda: salve.record(hooked, loader, progress=False),
        lambda: salve.evaluate(model, loader),
        lambda: salve.assess(hooked, edit, loader),
        lambda: salve.search_alpha_crit(hooked, edit, loader, steps=1),
        lambda: hooked.run_with_cache(images),
        lambda: salve.LayerGradFam.of(hooked, sae).attribute(images, target=0),
    )
    kinds = str(images.dtype).removeprefix("torch."), str(tuple(images.shape))
    for call in calls:
        with torch.no_grad() if around else nullcontext(), pytest.raises(InputError) as error:
            call()
        assert all(text in str(error.value) for text in (*kinds, "(batch, 3, height, width)"))


def test_one_image_without_its_batch_and_a_device_that_is_not_there_are_refused() -> None:
    hooked = salve.attach(made("test_resnet"))
    acts = salve.record(hooked, LOADER, progress=False)
    sae = salve.fit(acts, "l1", n_latents=4, steps=5)
    with pytest.raises(SalveError, match=r"\(3, 32, 32\)"):
        salve.LayerGradFam.of(hooked, sae).attribute(IMAGES[0], target=0)
    for device in ("xla", "cuda:99", "no such thing", "mps"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
            salve.record(hooked, LOADER, device=device, progress=False)


def test_an_error_of_the_network_s_own_keeps_its_cause() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("only on Sundays")

    with pytest.raises(InputError, match="only on Sundays") as error:
        salve.evaluate(Picky(), LOADER)
    assert isinstance(error.value.__cause__, ValueError)


def test_a_model_without_parameters_gets_the_images_as_they_are() -> None:
    for kind in (torch.float64, torch.float16, torch.uint8):
        images = torch.ones(2, 3, 4, 4, dtype=kind)
        assert as_input(nn.Identity(), images) is images
    assert as_input(nn.Linear(2, 2), torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float32
    assert as_input(nn.Linear(2, 2), torch.ones(1, 2, dtype=torch.int64)).dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda x: (x * 255).byte(), r"uint8.*images\.float\(\) / 255"),
        (lambda x: x.permute(0, 2, 3, 1), r"permute\(0, 3, 1, 2\)"),
        (lambda x: x[:, :1], r"does not take batch 1, float32 of shape \(4, 1, 64, 64\)"),
        (lambda x: x.flatten(1), r"does not take batch 1, float32 of shape \(4, 12288\)"),
    ],
)
def test_what_to_do_is_told_where_shape_or_type_give_it_away(
    change: Callable[[Tensor], Tensor], remedy: str
) -> None:
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hooked = salve.attach(timm.create_model("test_resnet", num_classes=4).eval())
    loader = [(images, torch.arange(4)), (change(images), torch.arange(4))]
    calls: list[Callable[[], object]] = [
        lambda: salve.record(hooked, loader, progress=False),
        lambda: salve.evaluate(hooked, loader),
    ]
    for call in calls:
        with pytest.raises(InputError, match=remedy):
            call()
