"""The maps of all latents at once against Grad-FAM of one latent after the other."""

from typing import Any

import pytest
import torch
from latent_networks import NETWORKS, attached, dictionary_at
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.errors import AttributionError, InputError
from salve_plugin.validate import all_maps
from salve_plugin.validate.latents import Stage

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def equal(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def one_by_one(fam: salve.LayerGradFam, images: Tensor, latents: list[int]) -> Tensor:
    return torch.cat([fam.attribute(images, latent) for latent in latents], 1)


@pytest.mark.parametrize("stage", ["pre", "post"])
@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_the_maps_of_one_latent_after_the_other(name: str, stage: Stage) -> None:
    hooked = attached(name)
    site = hooked.site(hooked.head_sites[0])
    sizes = (site.width + 9, 5) if stage == "pre" else (site.width + 9,)
    for n_latents in sizes:  # more latents than features, and fewer
        sae = dictionary_at(site, n_latents, k=5)
        fam = salve.LayerGradFam.of(hooked, sae, stage=stage)
        maps = salve.grad_fam_maps(fam, IMAGES)
        few = [0, n_latents - 1, 3]
        assert maps.shape[:2] == (3, n_latents)
        equal(maps[:, few], one_by_one(fam, IMAGES, few))
        equal(salve.grad_fam_maps(fam, IMAGES, few), maps[:, few])
        own = torch.tensor([[0, 2], [n_latents - 1, 1], [3, 3]])
        equal(salve.grad_fam_maps(fam, IMAGES, own), maps[torch.arange(3)[:, None], own])
        assert maps.any()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_at_a_site_with_positions_too(name: str) -> None:
    hooked = attached(name)
    site = hooked.site("blocks.1.hook_resid_post")
    sae = dictionary_at(site, 7, k=3)
    for layer in (site.name, "blocks.0.hook_resid_post"):
        fam = salve.LayerGradFam.of(hooked, sae, layer=layer, stage="post")
        maps = salve.grad_fam_maps(fam, IMAGES)
        equal(maps, one_by_one(fam, IMAGES, list(range(7))))


class Own(nn.Module):
    """A dictionary of the caller's own, whose encoder cannot be differentiated twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(9, width, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def encode(self, x: Tensor) -> Tensor:
        latents: Tensor = Once.apply(x @ self.weight.T)
        return latents


class Once(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, Any]:
        return x.square(), in_dims[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        pulled: Tensor = 2 * gradient * x
        return pulled


def test_a_dictionary_that_differentiates_once_and_pieces_of_any_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooked = attached("test_convnext")
    head, layer = hooked.site(hooked.head_sites[0]), hooked.attribution_site
    assert layer is not None
    fam = salve.LayerGradFam(hooked.model, layer, Own(head.width), site=head, stage="post")
    expected = one_by_one(fam, IMAGES, list(range(9)))
    equal(salve.grad_fam_maps(fam, IMAGES), expected)
    monkeypatch.setattr(all_maps, "MOST_ELEMENTS", 1)
    monkeypatch.setattr(all_maps, "POSITIONS", 2)
    equal(salve.grad_fam_maps(fam, IMAGES), expected)
    sae = dictionary_at(head, head.width + 1, k=5)
    of_sae = salve.LayerGradFam.of(hooked, sae, stage="post")
    equal(salve.grad_fam_maps(of_sae, IMAGES)[:, :2], one_by_one(of_sae, IMAGES, [0, 1]))


def test_what_has_no_map_is_refused_as_one_latent_is() -> None:
    hooked = attached("test_vit3")
    sae = dictionary_at(hooked.site(hooked.head_sites[0]), 5)
    fam = salve.LayerGradFam.of(hooked, sae)
    with pytest.raises(InputError, match="latents are 0 to 4"):
        salve.grad_fam_maps(fam, IMAGES, [5])
    with pytest.raises(InputError, match="latents of 2 images for 3"):
        salve.grad_fam_maps(fam, IMAGES, torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(InputError, match="got LayerCodeMap"):
        salve.grad_fam_maps(salve.LayerCodeMap.of(hooked, sae), IMAGES)
    fam.site, fam._site = (hooked.model.get_submodule("patch_embed"), "out"), None
    with pytest.raises(AttributionError, match="does not depend on"):
        salve.grad_fam_maps(fam, IMAGES)
