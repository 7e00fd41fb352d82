"""The heat map against the formula, brute force, finite differences and Captum's Grad-CAM."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from salve_plugin.demo.digits import Split
from salve_plugin.errors import AttributionError, HookNotFiredError, InputError
from salve_plugin.validate.grad_fam import GradFAM, LayerGradFam
from salve_plugin.validate.layout import Tokens
from salve_plugin.validate.module_sides import ModuleSide
from salve_plugin.validate.weighted_maps import weighted_map


def seeded(build: Callable[[], Any], dtype: torch.dtype = torch.float64) -> Any:
    """Build a network from seed 0, with weights large enough to matter, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval().to(dtype)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def images(batch: int = 3, size: int = 32, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64)


def untyped(build: Any) -> Any:
    """Return it as it is; parts of timm have no types."""
    return build


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


VIT: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2,
    "num_heads": 2,
}  # fmt: skip


def swin() -> Any:
    return SwinTransformer(
        img_size=32, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depths=(1, 1),
        num_heads=(1, 2), window_size=4,
    )  # fmt: skip


def convnext() -> Any:
    return ConvNeXt(in_chans=1, num_classes=10, depths=(1, 1, 1, 1), dims=(8, 8, 16, 24))


def test_its_attribute_has_exactly_the_parameters_of_captums_grad_cam() -> None:
    def parameters(function: Callable[..., Any]) -> list[tuple[str, object, object]]:
        found = inspect.signature(function).parameters.values()
        return [(each.name, each.kind, each.default) for each in found]

    assert parameters(LayerGradFam.attribute) == parameters(LayerGradCam.attribute)
    assert GradFAM is LayerGradFam


def test_a_map_can_be_worked_out_by_hand(make_encoder: Any) -> None:
    # One 2x2 image, two channels: the image and its double; pooled by the mean; z = 3 x0 - x1 + 7.
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.Identity()
            self.layer.weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.layer(x).mean((2, 3)))
            return result

    net, image = Net(), torch.tensor([[1.0, 2.0], [3.0, -4.0]])[None, None]
    dictionary = make_encoder(torch.tensor([[3.0, -1.0]]), torch.tensor([7.0]))
    fam = LayerGradFam(net, net.layer, dictionary, site=(net.head, "in"))
    # weights 3/4 and -1/4, so the map is 3/4 a - 1/4 2a = a/4
    assert fam.attribute(image).tolist() == [[[[0.25, 0.5], [0.75, -1.0]]]]
    assert fam.attribute(image, 0, relu_attributions=True).tolist() == [[[[0.25, 0.5], [0.75, 0]]]]
    kept = fam.attribute(image, 0, attr_dim_summation=False)
    assert kept.tolist() == [[[[0.75, 1.5], [2.25, -3]], [[-0.5, -1], [-1.5, 2]]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_after_average_pooling_it_is_the_encoder_row_over_the_area_times_the_map(
    digits_resnet: Any, digits_test: Split, make_affine: Any, dtype: torch.dtype
) -> None:
    model, x = digits_resnet.to(dtype), digits_test.images[:4].to(dtype)
    dictionary = make_affine(128, 12, dtype)
    fam = LayerGradFam(model, model.layer4, dictionary, site=(model.fc, "in"))
    with torch.no_grad():
        maps = model.forward_features(x)
        latents = dictionary.pre_activation(model.forward_head(maps, pre_logits=True))
        at_zero = dictionary.pre_activation(torch.zeros(1, 128, dtype=dtype))
    for latent in (0, 5, 11):
        heat = fam.attribute(x, latent)
        closed = torch.einsum("k,bkhw->bhw", dictionary.E[latent] / 16, maps)[:, None]
        assert heat.shape == (4, 1, 4, 4)
        assert relative_error(heat, closed) < (1e-12 if dtype == torch.float64 else 1e-5)
        added = (latents - at_zero)[:, latent]
        assert relative_error(heat.sum((1, 2, 3)), added) < 1e-5


@pytest.mark.parametrize("build", [swin, convnext])
def test_it_equals_brute_force_on_maps_of_either_layout(
    build: Callable[[], Any], make_affine: Any
) -> None:
    model, x = seeded(build), images(size=32 if build is swin else 64)
    features = model.forward_features(x).detach()
    nhwc = build is swin
    width = features.shape[-1 if nhwc else 1]
    dictionary = make_affine(width, dtype=torch.float64)
    layer = model.norm if nhwc else model.stages[-1]
    site: ModuleSide = (model.get_classifier(), "in")
    fam = LayerGradFam(model, layer, dictionary, site=site, tokens="NHWC" if nhwc else None)
    expected = []
    for image_features in features:
        leaf = image_features[None].clone().requires_grad_()
        latent = dictionary.pre_activation(model.forward_head(leaf, pre_logits=True))[0, 4]
        (gradient,) = torch.autograd.grad(latent, leaf)
        weights = gradient[0].mean((0, 1) if nhwc else (1, 2))
        expected.append((weights * leaf[0]).sum(-1) if nhwc else torch.einsum(
            "k,khw->hw", weights, leaf[0]))  # fmt: skip
    assert relative_error(fam.attribute(x, 4)[:, 0], torch.stack(expected).detach()) < 1e-10


def build_vit(**options: Any) -> Callable[[], Any]:
    return lambda: VisionTransformer(**VIT, **options)


@pytest.mark.parametrize(
    ("build", "prefix"),
    [
        (build_vit(global_pool="avg", reg_tokens=4), 5),
        (build_vit(global_pool="avg", class_token=False, reg_tokens=2), 2),
        (build_vit(global_pool="avg", class_token=False), 0),
    ],
    ids=["class and registers", "registers", "no prefix"],
)
def test_with_average_pooling_of_tokens_it_drops_the_prefix_and_equals_brute_force(
    build: Callable[[], Any], prefix: int, make_affine: Any
) -> None:
    model, x = seeded(build), images()
    dictionary = make_affine(32, dtype=torch.float64)
    fam = LayerGradFam(
        model, model.norm, dictionary, site=(model.head, "in"), tokens=(prefix, (4, 4))
    )
    tokens = model.forward_features(x).detach().requires_grad_()
    latents = dictionary.pre_activation(model.forward_head(tokens, pre_logits=True))
    (gradient,) = torch.autograd.grad(latents[:, 2].sum(), tokens)
    weights = gradient[:, prefix:].mean(1, keepdim=True)
    expected = (weights * tokens[:, prefix:]).sum(2).reshape(3, 1, 4, 4)
    assert relative_error(fam.attribute(x, 2), expected.detach()) < 1e-10


@pytest.mark.parametrize(
    ("build", "prefix"),
    [
        (build_vit(), 1),
        (build_vit(reg_tokens=3), 4),
        (lambda: untyped(VisionTransformerDistilled)(**VIT), 2),
    ],
    ids=["class", "class and registers", "distilled"],
)
def test_with_class_token_pooling_it_looks_before_the_last_attention(
    build: Callable[[], Any], prefix: int, make_affine: Any
) -> None:
    model, x = seeded(build), images()
    dictionary = make_affine(32, dtype=torch.float64)
    site: ModuleSide = (model.head, "in")
    last, tokens = model.blocks[-1], (prefix, (4, 4))
    fam = LayerGradFam(model, last.norm1, dictionary, site=site, tokens=tokens)
    entering: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _module, args: entering.append(args[0]))
    model(x)
    handle.remove()
    normed = last.norm1(entering[0]).detach().requires_grad_()
    stream = entering[0].detach() + last.ls1(last.attn(normed))
    stream = model.norm(stream + last.ls2(last.mlp(last.norm2(stream))))
    latent = dictionary.pre_activation(model.fc_norm(stream[:, 0]))[:, 1]
    (gradient,) = torch.autograd.grad(latent.sum(), normed)
    weights = gradient[:, prefix:].mean(1, keepdim=True)
    expected = (weights * normed[:, prefix:]).sum(2).reshape(3, 1, 4, 4)
    assert relative_error(fam.attribute(x, 1), expected.detach()) < 1e-10

    behind = LayerGradFam(model, last, dictionary, site=site, tokens=tokens)
    with pytest.raises(AttributionError, match=r"blocks\[-1\]\.norm1"):
        behind.attribute(x, 1)


def test_it_equals_central_differences(make_affine: Any) -> None:
    model, x = seeded(convnext), images(1, size=64)
    dictionary = make_affine(24, dtype=torch.float64)
    fam = LayerGradFam(model, model.stages[-1], dictionary, site=(model.head.fc, "in"))
    with torch.no_grad():
        maps = model.forward_features(x)
        positions, step = maps[0, 0].numel(), 1e-5

        def latent(features: Tensor) -> float:
            return float(dictionary.pre_activation(model.forward_head(features, True))[0, 3])

        expected = torch.zeros_like(maps[0, 0])
        for channel in range(24):
            # Moving a whole channel by `step` changes z by step times its summed gradient.
            moved = torch.zeros_like(maps)
            moved[:, channel] = step
            slope = (latent(maps + moved) - latent(maps - moved)) / (2 * step)
            expected += slope / positions * maps[0, channel]
    assert relative_error(fam.attribute(x, 3)[0, 0], expected) < 1e-6


def test_with_the_heads_own_weights_it_is_captums_grad_cam(
    digits_resnet: Any, digits_test: Split, make_encoder: Any
) -> None:
    x = digits_test.images[:2]
    dictionary = make_encoder(digits_resnet.fc.weight, digits_resnet.fc.bias)
    for layer in (digits_resnet.layer4, digits_resnet.layer2[0].conv1):
        fam = LayerGradFam(digits_resnet, layer, dictionary, site=(digits_resnet.fc, "in"))
        cam = LayerGradCam(digits_resnet, layer)
        for options in ({}, {"relu_attributions": True}, {"attribute_to_layer_input": True},
                        {"attr_dim_summation": False}):  # fmt: skip
            peer = cam.attribute(x, 7, **options).detach()
            assert relative_error(fam.attribute(x, 7, **options), peer) < 1e-6
        per_image = torch.tensor([7, 2])
        peer = cam.attribute(x, per_image).detach()
        for target in (per_image, per_image.tolist(), [(7,), (2,)]):
            assert relative_error(fam.attribute(x, target), peer) < 1e-6


def test_the_code_of_a_latent_that_is_off_has_an_all_zero_map(
    digits_resnet: Any, digits_test: Split, make_affine: Any
) -> None:
    x, dictionary = digits_test.images[:6], make_affine(128)
    site: ModuleSide = (digits_resnet.fc, "in")
    pre = LayerGradFam(digits_resnet, digits_resnet.layer4, dictionary, site=site)
    post = LayerGradFam(digits_resnet, digits_resnet.layer4, dictionary, site=site, stage="post")
    off = 0
    for latent in range(3):
        with torch.no_grad():
            pooled = digits_resnet.forward_head(digits_resnet.forward_features(x), pre_logits=True)
            on = dictionary.pre_activation(pooled)[:, latent] > 0
        heat = post.attribute(x, latent)
        assert torch.equal(heat[on], pre.attribute(x, latent)[on])
        assert not heat[~on].any()
        off += int((~on).sum())
    assert 0 < off < 3 * 6


def test_a_latent_of_a_map_is_its_mean_over_positions(make_affine: Any) -> None:
    model, x = seeded(convnext), images(size=64)
    layer, dictionary = model.stages[-1], make_affine(24, dtype=torch.float64)
    fam = LayerGradFam(model, layer, dictionary, site=(layer, "out"))
    maps = model.forward_features(x).detach()
    closed = torch.einsum("k,bkhw->bhw", dictionary.E[5] / maps[0, 0].numel(), maps)[:, None]
    assert relative_error(fam.attribute(x, 5), closed) < 1e-10


def test_a_latent_of_tokens_is_its_mean_over_all_of_them(make_affine: Any) -> None:
    model, x = seeded(build_vit()), images()
    layer, dictionary = model.blocks[0], make_affine(32, dtype=torch.float64)
    fam = LayerGradFam(model, layer, dictionary, site=(layer, "out"), tokens=(1, (4, 4)))
    with torch.no_grad():
        tokens = layer(model.norm_pre(model._pos_embed(model.patch_embed(x))))
    closed = (tokens[:, 1:] @ dictionary.E[5] / 17).reshape(3, 1, 4, 4)
    assert relative_error(fam.attribute(x, 5), closed) < 1e-10


def test_weighted_map_is_the_gradients_mean_times_the_activation() -> None:
    activation = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    gradient = torch.tensor([[[[2.0, 4.0]], [[-1.0, 1.0]]]])
    assert weighted_map(activation, gradient).tolist() == [[[[3.0, 6.0]], [[0.0, 0.0]]]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [((1, (3, 3)), "does not fit tokens"), ((0, (4, 4)), "does not fit"), (None, "not a 4-d map")],
)
def test_a_layout_that_does_not_fit_is_refused_with_the_shape(
    digits_vit: Any, digits_test: Split, make_affine: Any, tokens: Tokens, message: str
) -> None:
    fam = LayerGradFam(
        digits_vit, digits_vit.blocks[-1].norm1, make_affine(64), site=(digits_vit.head, "in"),
        tokens=tokens,
    )  # fmt: skip
    with pytest.raises(InputError, match=message) as error:
        fam.attribute(digits_test.images[:2], 0)
    assert "(2, 17, 64)" in str(error.value)


def test_each_impossible_request_has_its_own_error(
    digits_resnet: Any, digits_test: Split, make_affine: Any
) -> None:
    model, x, dictionary = digits_resnet, digits_test.images[:2], make_affine(128)

    def fam(layer: Any, site: Any = (model.fc, "in"), **options: Any) -> LayerGradFam:
        return LayerGradFam(model, layer, options.pop("of", dictionary), site=site, **options)

    for target in (6, -1, [0, 6], torch.tensor([1, 2, 3]), None, torch.tensor(0.5)):
        with pytest.raises(InputError, match="latent"):
            fam(model.layer4).attribute(x, target)
    with pytest.raises(AttributionError, match="does not depend"):
        fam(model.layer4, site=(model.layer3, "out"), of=make_affine(64)).attribute(x, 0)
    with pytest.raises(HookNotFiredError, match="output of Linear"):
        fam(nn.Linear(1, 1)).attribute(x, 0)
    with pytest.raises(HookNotFiredError, match="input of Identity"):
        fam(model.layer4, site=(nn.Identity(), "in")).attribute(x, 0)
    with pytest.raises(InputError, match="reads 64 features"):
        fam(model.layer4, of=make_affine(64)).attribute(x, 0)
    with pytest.raises(AttributionError, match="not finite"):
        fam(model.layer4).attribute(torch.full_like(x, torch.nan), 0)


def test_a_layer_that_runs_twice_is_refused(make_affine: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.conv(self.conv(x)).mean((2, 3)))
            return result

    net = Twice()
    with pytest.raises(AttributionError, match="more than once"):
        LayerGradFam(net, net.conv, make_affine(1), site=(net.head, "in")).attribute(
            torch.ones(1, 1, 4, 4), 0
        )
