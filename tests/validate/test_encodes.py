"""Grad-FAM of a dictionary from anywhere: any module with `encode`."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.errors import InputError

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class OwnSae(nn.Module):
    """Nothing but `encode`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(width, 5).double()

    def encode(self, x: Tensor) -> Tensor:
        code: Tensor = self.layer(x).relu()
        return code


class Scored(OwnSae):
    def pre_activation(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        return scores


class Whole(OwnSae):
    def encode(self, x: Tensor) -> Any:
        return self.layer(x).sum(-1)


def made() -> tuple[Any, salve.HookedModel]:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=3).eval()
    return model, salve.attach(model)


def test_any_module_with_encode_is_explained_after_the_affine_formula() -> None:
    model, hooked = made()
    sae, layer = OwnSae(96), hooked.attribution_site
    assert layer is not None
    fam = salve.LayerGradFam(model, layer, sae, site=(model.fc, "in"), stage="post")
    with torch.no_grad():
        _, cache = hooked.run_with_cache(IMAGES)
        on = (sae.encode(cache["unembed.hook_in"].double()) > 0).double()
        maps = cache[layer.name].double()
    for latent in range(5):
        weight = sae.layer.weight[latent].detach()
        expected = torch.einsum("k,bkhw->bhw", weight, maps) / maps[0, 0].numel()
        expected = expected[:, None] * on[:, latent, None, None, None]
        heat = fam.attribute(IMAGES, target=latent).double()
        torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="latents are 0 to 4"):
        fam.attribute(IMAGES, target=5)
    assert salve.LayerGradFam(model, layer, Scored(96), site=(model.fc, "in")).stage == "pre"


@pytest.mark.usefixtures("untyped")
def test_what_has_not_the_method_is_refused_by_the_constructor() -> None:
    model, hooked = made()
    layer: Any = hooked.attribution_site
    site = (model.fc, "in")
    lacking: Any = nn.Linear(96, 5)
    refused: list[tuple[Any, str, str]] = [
        (OwnSae(96), "pre", "no method 'pre_activation'.*stage='post'"),
        (lacking, "post", "Linear has no method 'encode'"),
        (None, "pre", "NoneType has no method 'encode'"),
        ("text", "post", "str has no method 'encode'"),  # it has: another one
    ]
    for dictionary, stage, message in refused:
        options: Any = {"site": site, "stage": stage}
        with pytest.raises(InputError, match=message):
            salve.LayerGradFam(model, layer, dictionary, **options)
    fam: Any = salve.LayerGradFam(
        model, model.layer4, Whole(96), site=(model.fc, "in"), stage="post"
    )
    with pytest.raises(InputError, match="holds the latents"):
        fam.attribute(IMAGES, target=0)
