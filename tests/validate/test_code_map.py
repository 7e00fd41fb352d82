"""Codes by position against each position encoded by hand."""

from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from latent_networks import attached, dictionary_at
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.errors import AttributionError, InputError

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def by_hand(sae: Any, rows: Tensor, latent: int, stage: str = "post") -> Tensor:
    """Return z_l(p) of a map (batch, h, w, width), one position after the other."""
    read = sae.encode if stage == "post" else sae.pre_activation
    return torch.stack(
        [torch.stack([torch.stack([read(p)[latent] for p in line]) for line in x]) for x in rows]
    )[:, None]


@pytest.mark.parametrize("network", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_at_a_pooled_site_every_position_of_the_pooled_map_is_coded(network: str) -> None:
    hooked = attached(network)
    head, layer = hooked.site("unembed.hook_in"), hooked.attribution_site
    assert layer is not None
    _, cache = hooked.run_with_cache(IMAGES)
    rows = cache[layer.name].movedim(layer.channel_axis, -1)
    for learner, options in (("topk", {"k": 3}), ("l1", {})):
        sae = dictionary_at(head, 9, learner, **options)
        maps = salve.LayerCodeMap.of(hooked, sae)
        assert maps.stage == "post"
        heat = maps.attribute(IMAGES, 4)
        torch.testing.assert_close(heat, by_hand(sae, rows, 4))
        before = salve.LayerCodeMap.of(hooked, sae, stage="pre").attribute(IMAGES, 4)
        torch.testing.assert_close(before, by_hand(sae, rows, 4, "pre"))
        # The mean of an affine latent over positions is the latent of the mean.
        latents = sae.pre_activation(cache["unembed.hook_in"])[:, 4]
        torch.testing.assert_close(before.mean((1, 2, 3)), latents)
        fam = salve.LayerGradFam.of(hooked, sae).attribute(IMAGES, 4)
        offset = sae.encoder_bias[4]
        torch.testing.assert_close((before - offset) / before[0].numel(), fam)


@pytest.mark.parametrize("network", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_at_a_site_with_positions_they_are_its_own(network: str) -> None:
    hooked = attached(network)
    site = hooked.site("blocks.1.hook_resid_post")
    sae = dictionary_at(site, 9, k=3)
    _, cache = hooked.run_with_cache(IMAGES)
    x = cache[site.name]
    if site.layout == "tokens":
        assert site.grid is not None
        x = x[:, site.prefix_tokens :].reshape(len(x), *site.grid, -1)
    rows = x.movedim(1, -1) if site.layout == "nchw" else x
    heat = salve.LayerCodeMap.of(hooked, sae).attribute(IMAGES, [1, 6])
    expected = torch.cat([by_hand(sae, rows[:1], 1), by_hand(sae, rows[1:], 6)])
    torch.testing.assert_close(heat, expected)
    smooth = NoiseTunnel(salve.LayerCodeMap.of(hooked, sae))
    noisy = smooth.attribute(
        IMAGES, nt_samples=2, stdevs=0.0, target={1: 1.0}, nt_type="smoothgrad"
    )
    torch.testing.assert_close(noisy[:1], expected[:1])


class Summed(nn.Module):
    """A network that adds positions up instead of averaging them, or raises them to a power."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.power = nn.Conv2d(3, 5, 8, stride=8).double(), power
        self.fc = nn.Linear(5, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc((self.layer(x) ** self.power).sum((2, 3)))
        return made


def test_what_a_sum_pools_is_coded_on_the_scale_of_the_sum() -> None:
    net = Summed()
    site = salve.Site("unembed.hook_in", "fc", "in", "pooled", 5)
    sae = dictionary_at(site, 6, "l1")
    heat = salve.LayerCodeMap(net, net.layer, sae, site=site).attribute(IMAGES, 2)
    latents = sae.encode(net.layer(IMAGES).sum((2, 3)))[:, 2]
    torch.testing.assert_close(heat.mean((1, 2, 3)), latents)


@pytest.mark.parametrize("network", ["test_convnext", "test_vit", "test_vit2", "test_vit3"])
def test_another_pooling_is_refused_with_a_way_out(network: str) -> None:
    hooked = attached(network)
    sae = dictionary_at(hooked.site(hooked.head_sites[0]), 6)
    with pytest.raises(AttributionError, match=r"no weighted mean.*Use LayerGradFam.*record\("):
        salve.LayerCodeMap.of(hooked, sae).attribute(IMAGES, 0)


def test_a_batch_without_images_is_refused() -> None:
    hooked = attached("test_resnet")
    sae = dictionary_at(hooked.site("unembed.hook_in"), 6)
    with pytest.raises(InputError, match="there is no image to explain"):
        salve.LayerCodeMap.of(hooked, sae).attribute(IMAGES[:0], 0)
    with pytest.raises(InputError, match="there is no image to explain"):
        salve.grad_fam_maps(salve.LayerGradFam.of(hooked, sae), IMAGES[:0])


def test_a_generalized_mean_is_refused() -> None:
    net = Summed(power=3.0)
    site = salve.Site("unembed.hook_in", "fc", "in", "pooled", 5)
    maps = salve.LayerCodeMap(net, net.layer, dictionary_at(site, 6), site=site)
    with pytest.raises(AttributionError, match="no weighted mean"):
        maps.attribute(IMAGES, 0)


@pytest.mark.parametrize("name", ["unembed.hook_in", "blocks.1.hook_resid_post"])
@pytest.mark.parametrize("network", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_a_class_is_gradient_times_code_at_each_position(network: str, name: str) -> None:
    hooked = attached(network)
    site = hooked.site(name)
    layer = hooked.attribution_site if site.layout == "pooled" else site
    assert layer is not None
    sae = dictionary_at(site, 7, k=4)
    _, cache = hooked.run_with_cache(IMAGES)
    x = cache[name].detach().requires_grad_()
    hook = (name, lambda activation, hook: x)
    logits = hooked.run_with_hooks(IMAGES, fwd_hooks=[hook])
    (gradient,) = torch.autograd.grad((logits - logits.mean(1, keepdim=True))[:, 3].sum(), x)
    heat = salve.LayerCodeMap.of(hooked, sae).attribute(IMAGES, salve.contribution(3, top=2))
    for image in range(2):
        rows = layer.rows(cache[layer.name][image : image + 1])
        pulled = site.rows(gradient[image : image + 1])  # one row, at a pooled site
        added = sae.encode(rows) * (pulled @ sae.atoms.T)
        totals = added.sum(0)
        best = [latent for latent in totals.argsort(descending=True)[:2] if totals[latent] > 0]
        expected = added[:, best].sum(1)
        torch.testing.assert_close(heat[image].flatten(), expected)
    assert heat.any()
