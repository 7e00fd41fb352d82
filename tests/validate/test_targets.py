"""Weighted sums of latents as targets, and the latents that a class's logit is made of."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_networks import attached, dictionary_at
from torch import Tensor

import salve_plugin as salve
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def equal(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def hooked() -> HookedModel:
    return attached("test_resnet")


@pytest.fixture(scope="module")
def fams(hooked: HookedModel) -> dict[str, salve.LayerGradFam]:
    pooled = dictionary_at(hooked.site("unembed.hook_in"), 6, k=3)
    of_map = dictionary_at(hooked.site("blocks.1.hook_resid_post"), 6, k=3)
    return {
        "pooled": salve.LayerGradFam.of(hooked, pooled),
        "map": salve.LayerGradFam.of(hooked, of_map),
        "codes": salve.LayerCodeMap.of(hooked, pooled),
        "codes of a map": salve.LayerCodeMap.of(hooked, of_map),
    }


@given(
    kind=st.sampled_from(("pooled", "map", "codes", "codes of a map")),
    weights=st.lists(st.floats(-4, 4), min_size=6, max_size=6),
    factor=st.floats(-3, 3),
    latent=st.integers(0, 5),
)
@settings(deadline=None, max_examples=4)
def test_a_map_is_linear_in_the_weights_and_one_weight_is_one_latent(
    fams: dict[str, Any], kind: str, weights: list[float], factor: float, latent: int
) -> None:
    fam, w = fams[kind], torch.tensor(weights, dtype=torch.float64)
    one_hot = torch.eye(6, dtype=torch.float64)[latent]
    single = fam.attribute(IMAGES, latent)
    equal(fam.attribute(IMAGES, {latent: 1}), single)
    whole = fam.attribute(IMAGES, w)
    equal(fam.attribute(IMAGES, w + factor * one_hot), whole + factor * single)
    # Per image: the first as it is, of the second one latent alone.
    both = fam.attribute(IMAGES, torch.stack([w, one_hot]))
    equal(both, torch.cat([whole[:1], single[1:]]))
    equal(fam.attribute(IMAGES, [latent, 0]), torch.cat([single[:1], fam.attribute(IMAGES, 0)[1:]]))


def logits_by_hand(hooked: HookedModel, site: Site, x: Tensor) -> Tensor:
    """Return the logits, less their mean, from the activation at a site."""
    hook = (site.name, lambda activation, hook: x)
    logits: Tensor = hooked.run_with_hooks(IMAGES, fwd_hooks=[hook])
    return logits - logits.mean(1, keepdim=True)


@pytest.mark.parametrize("name", ["unembed.hook_in", "blocks.1.hook_resid_post"])
@pytest.mark.parametrize("network", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_a_contribution_is_gradient_times_code_by_hand(network: str, name: str) -> None:
    hooked = attached(network)
    site = hooked.site(name)
    sae = dictionary_at(site, 7, k=4)
    fam = salve.LayerGradFam.of(hooked, sae)
    _, cache = hooked.run_with_cache(IMAGES)
    x = cache[name].detach().requires_grad_()
    for label in (2, [0, 3]):
        classes = torch.tensor([label] * 2 if isinstance(label, int) else label)
        chosen = logits_by_hand(hooked, site, x).gather(1, classes[:, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), x)
        weights = torch.zeros(2, 7, dtype=torch.float64)
        for image in range(2):
            rows, pulled = (site.rows(each[image : image + 1]).detach() for each in (x, gradient))
            effects = pulled @ sae.atoms.T
            contributions = (sae.encode(rows) * effects).sum(0)
            best = contributions.argsort(descending=True)[:2]
            best = best[contributions[best] > 0]
            weights[image, best] = effects.sum(0)[best]
        heat = fam.attribute(IMAGES, salve.contribution(label, top=2))
        equal(heat, fam.attribute(IMAGES, weights))
        assert heat.any()


def test_at_the_head_all_contributions_add_up_to_the_logit(hooked: HookedModel) -> None:
    sae = dictionary_at(hooked.site("unembed.hook_in"), 400, "l1")
    fam = salve.LayerGradFam.of(hooked, sae)
    weight, _ = hooked.unembed()
    row = weight[1] - weight.mean(0)
    # The weighted sum of the latents of an affine encoder is the row through decoder and encoder.
    through = row @ sae.atoms.T @ sae.encoder_weight
    layer = hooked.attribution_site
    assert layer is not None
    _, cache = hooked.run_with_cache(IMAGES)
    maps = cache[layer.name]
    expected = torch.einsum("k,bkhw->bhw", through, maps)[:, None] / maps[0, 0].numel()
    equal(fam.attribute(IMAGES, salve.contribution(1, top=None)), expected)
    equal(fam.attribute(IMAGES, salve.contribution("1", top=None)), expected)


@pytest.mark.usefixtures("untyped")
def test_a_class_is_an_integer_of_any_kind() -> None:
    integers: list[Any] = [np.int64(3), np.array(3), torch.tensor(3), torch.tensor(3).int()]
    for integer in integers:
        assert salve.contribution(integer).label == 3
    several: list[Any] = [[3, np.int64(1)], np.array([3, 1]), torch.tensor([3, 1])]
    for labels in several:
        assert salve.contribution(labels).label == (3, 1)


def test_bad_targets_are_refused(hooked: HookedModel, fams: dict[str, Any]) -> None:
    fam = fams["pooled"]
    for target, message in (
        (torch.ones(5), r"weights of shape \(5,\)"),
        (torch.full((6,), torch.nan), "not finite"),
        ({}, "empty dict"),
        ({6: 1.0}, "latents are 0 to 5"),
        (salve.contribution(4), "there is no class 4; the model has 4"),
        (salve.contribution(10**20), "there is no class 1000"),
        (salve.contribution(-1), "there is no class -1"),
        (salve.contribution([0, 1, 2]), "3 classes for 2 images"),
        (salve.contribution("church"), "match no class of the model"),
    ):
        with pytest.raises(InputError, match=message):
            fam.attribute(IMAGES, target)
    for label, top, message in (
        (0, 0, "top must be at least 1"),
        (True, 1, "is no class"),
        (torch.ones(2), 1, "is no class"),
    ):
        with pytest.raises(InputError, match=message):
            salve.contribution(label, top=top)
    sae, site = fam.dictionary, hooked.site("unembed.hook_in")
    layer = hooked.attribution_site
    assert layer is not None
    bare = salve.LayerGradFam(hooked.model, layer, sae, site=site)
    with pytest.raises(InputError, match=r"LayerGradFam\.of\(hooked, dictionary\)"):
        bare.attribute(IMAGES, salve.contribution(0))
    whole = salve.LayerGradFam(hooked, layer, sae, site=site)
    equal(
        whole.attribute(IMAGES, salve.contribution(0)), fam.attribute(IMAGES, salve.contribution(0))
    )


def test_a_network_in_single_precision_and_a_dictionary_in_double_go_together() -> None:
    hooked = attached("test_resnet")
    sae = dictionary_at(hooked.site("blocks.1.hook_resid_post"), 6, "l1")
    target = salve.contribution(1, top=3)
    for kind in (salve.LayerGradFam, salve.LayerCodeMap):
        exact = kind.of(hooked, sae).attribute(IMAGES, target)
        hooked.model.float()
        heat = kind.of(hooked, sae, on_base_mismatch="warn").attribute(IMAGES, target)
        hooked.model.double()
        assert heat.dtype in (torch.float32, torch.float64)
        error = (heat - exact).norm() / exact.norm()
        assert float(error) < 1e-3
