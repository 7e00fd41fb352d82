"""Calls that only read a model: they run it in eval mode and leave it exactly as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import AttributionError
from salve_plugin.modes import evaluating

IMAGES = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LOADER = [(IMAGES, torch.arange(24) % 3)]


def everything(model: nn.Module) -> list[object]:
    """Return what a call that only reads must not change, comparable by ==."""
    tensors = [*model.state_dict().values()]
    return [
        [module.training for module in model.modules()],
        [tensor.numpy().tobytes() for tensor in tensors],
        [id(tensor) for tensor in model.buffers()],
        [tensor._version for tensor in model.buffers()],
        [(p.requires_grad, id(p.grad), None if p.grad is None else float(p.grad.sum()))
         for p in model.parameters()],
        [len(getattr(module, "attention_bias_cache", {})) for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    ]  # fmt: skip


Calls = dict[str, Callable[[], object]]


def reading_calls(hooked: Any, sae: Dictionary, acts: salve.Activations) -> Calls:
    gate = salve.suppress(hooked, sae, latent=0, strength=0.5)
    fam = salve.LayerGradFam.of(hooked, sae)
    return {
        "Grad-FAM": lambda: fam.attribute(IMAGES, target=0),
        "maximize": lambda: salve.maximize(hooked, sae, 0, steps=2),
        "quality": lambda: salve.quality(sae, acts, hooked=hooked, loader=LOADER, controls=()),
        "record": lambda: salve.record(hooked, LOADER, progress=False),
        "evaluate": lambda: salve.evaluate(hooked, LOADER),
        "assess": lambda: salve.assess(hooked, gate, LOADER),
        "search_alpha_crit": lambda: salve.search_alpha_crit(
            hooked, gate, LOADER, steps=2, halvings=1
        ),
        "run_with_cache": lambda: hooked.run_with_cache(IMAGES),
        "attach": lambda: salve.attach(hooked.model),
    }


@pytest.mark.parametrize("name", ["test_resnet", "levit_128s"])
def test_every_call_that_only_reads_leaves_the_model_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 64} if "levit" in name else {}
    model = timm.create_model(name, num_classes=3, drop_rate=0.5, **size)
    assert model.training
    hooked = salve.attach(model)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    list(model.parameters())[1].requires_grad_(False)
    list(model.modules())[3].eval()
    acts = salve.record(hooked, LOADER, progress=False)
    calls = reading_calls(hooked, salve.fit(acts, "l1", n_latents=4, steps=5), acts)
    before = everything(model)
    for call_name, call in calls.items():
        call()
        assert everything(model) == before, call_name


def test_the_gradients_of_run_with_cache_are_in_the_cache_alone() -> None:
    torch.manual_seed(0)

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.body(x).square().sum()
            return result

    model = Squared()
    site = salve.Site("body", "body.1", "out", "pooled", 4)
    hooked = salve.HookedModel(model, [site], attribution_site=None, description={})
    model.body[0].weight.grad = torch.ones(4, 4)
    before = everything(model)
    _, cache = hooked.run_with_cache(torch.randn(5, 4), incl_bwd=True)
    assert everything(model) == before
    torch.testing.assert_close(cache["body_grad"], 2 * cache["body"])


def test_grad_fam_of_a_model_in_train_mode_is_that_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    hooked = salve.attach(model)
    sae = salve.fit(salve.record(hooked, LOADER, progress=False), "l1", n_latents=4, steps=5)
    layer = hooked.attribution_site
    assert layer is not None
    module = model.get_submodule(layer.module)
    site = (model.get_submodule(sae.site.module), sae.site.side)

    class Runner:
        def __init__(self) -> None:
            self.network = model

        def __call__(self, x: Tensor) -> Any:
            return self.network(x)

        def run(self, x: Tensor) -> Any:
            return self.network(x)

    def nested(x: Tensor) -> Any:
        return model(x)

    functions: list[Callable[..., Any]] = [
        model, model.forward, lambda x: model(x), lambda x: nested(x), Runner(), Runner().run,
    ]  # fmt: skip
    model.eval()
    expected = salve.LayerGradFam.of(hooked, sae).attribute(IMAGES, target=0)
    model.train()
    before = everything(model)
    for function in functions:
        fam = salve.LayerGradFam(function, module, sae, site=site)
        assert torch.equal(fam.attribute(IMAGES, target=0), expected)
        assert everything(model) == before

    hidden = [model]
    fam = salve.LayerGradFam(lambda x: hidden[0](x), module, sae, site=site)
    with pytest.raises(AttributionError, match="eval mode first"):
        fam.attribute(IMAGES, target=0)
    assert everything(model) == before


def test_a_model_that_counts_its_passes_is_put_back() -> None:
    class Counting(nn.Module):
        replaced: Tensor
        written: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("replaced", torch.zeros(1))
            self.register_buffer("written", torch.zeros(1))
            self.seen: dict[str, int] = {}

        def train(self, mode: bool = True) -> "Counting":
            raise AssertionError("a mode that a module changes with side effects")

        def forward(self, x: Tensor) -> Tensor:
            self.replaced = self.replaced + 1
            self.written += 1
            self.seen["passes"] = self.seen.get("passes", 0) + 1
            return x

    for made in (torch.no_grad(), torch.inference_mode()):
        with made:
            model = Counting()
        replaced = model.replaced
        with evaluating(model), torch.inference_mode():
            model(torch.zeros(1))
        assert model.replaced is replaced
        assert (float(model.replaced), float(model.written), model.seen) == (0.0, 0.0, {})
