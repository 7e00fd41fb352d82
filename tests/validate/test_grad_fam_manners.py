"""What Grad-FAM leaves alone, in which modes it works, and with which of Captum's tools."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from captum.attr import LayerAttribution, NoiseTunnel
from captum.concept import TCAV, Classifier, Concept
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.demo.digits import Split
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.errors import AttributionError, InputError, UnknownSiteError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT, Layout, Side, Site
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.tracing import _device_order


@pytest.fixture
def resnet_fam(digits_resnet: Any, make_affine: Any) -> LayerGradFam:
    return LayerGradFam(
        digits_resnet, digits_resnet.layer4, make_affine(128), site=(digits_resnet.fc, "in")
    )


@pytest.fixture
def x(digits_test: Split) -> Tensor:
    return digits_test.images[:2].clone()


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def state(model: nn.Module) -> list[object]:
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    return [hook_count(model), [m.training for m in model.modules()], flags]


def test_nothing_of_the_caller_is_changed_even_by_an_error(
    digits_resnet: Any, resnet_fam: LayerGradFam, x: Tensor
) -> None:
    model = digits_resnet
    model.layer1.train()  # a mode of its own, and no batch statistics that would move
    for module in model.layer1.modules():
        module.momentum = 0.0
    model.conv1.weight.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    x.requires_grad_()
    before, output, weights = state(model), model(x), [p.clone() for p in model.parameters()]
    image = x.detach().clone()

    heat = resnet_fam.attribute(x, 2)
    resnet_fam.attribute(x, 2, attribute_to_layer_input=True)
    resnet_fam.layer = model.conv1
    resnet_fam.attribute(x, 2, attribute_to_layer_input=True)
    with pytest.raises(InputError):
        resnet_fam.attribute(x, 99)
    with pytest.raises(InputError):
        resnet_fam.attribute(x[:, :, :1].expand(-1, 5, -1, -1), 0)

    assert state(model) == before
    assert torch.equal(model(x), output)
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    assert torch.equal(x, image)
    assert x.requires_grad
    assert x.grad is None
    assert not heat.requires_grad
    assert heat.grad_fn is None
    assert torch.is_grad_enabled()


def test_attributing_to_the_input_of_the_first_layer_leaves_the_images_alone(
    digits_resnet: Any, resnet_fam: LayerGradFam, x: Tensor
) -> None:
    resnet_fam.layer = digits_resnet.conv1
    assert resnet_fam.attribute(x, 1, attribute_to_layer_input=True).shape == (2, 1, 32, 32)
    assert not x.requires_grad


def test_it_gives_the_same_map_in_every_grad_mode(resnet_fam: LayerGradFam, x: Tensor) -> None:
    expected = resnet_fam.attribute(x, 1)
    with torch.no_grad():
        assert torch.equal(resnet_fam.attribute(x, 1), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        made_here = x * 1
        assert made_here.is_inference()
        assert torch.equal(resnet_fam.attribute(made_here, 1), expected)
        assert torch.is_inference_mode_enabled()


def test_a_forward_function_that_turns_gradients_off_does_no_harm(
    digits_resnet: Any, resnet_fam: LayerGradFam, x: Tensor
) -> None:
    expected = resnet_fam.attribute(x, 1)
    resnet_fam.forward_func = torch.no_grad()(digits_resnet.forward)
    assert torch.equal(resnet_fam.attribute(x, 1), expected)
    resnet_fam.forward_func = torch.inference_mode()(digits_resnet.forward)
    with pytest.raises(AttributionError, match="inference mode"):
        resnet_fam.attribute(x, 1)


def test_in_half_precision_the_map_is_that_of_float32(
    digits_resnet: Any, resnet_fam: LayerGradFam, x: Tensor
) -> None:
    expected = resnet_fam.attribute(x, 1)
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        digits_resnet.to(dtype)
        heat = resnet_fam.attribute(x.to(dtype), 1)
        assert heat.dtype == torch.float32
        assert (heat - expected).abs().max() < tolerance * expected.abs().max()


class Wide(nn.Module):
    """One channel that is pooled over 64 x 64 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 1, 1, bias=False), nn.Identity()
        nn.init.ones_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(x).mean((2, 3)))
        return result


@pytest.mark.parametrize("encoder", [1e-6, 1e-3, 1.0, 1e6])
def test_float16_neither_underflows_nor_overflows(make_encoder: Any, encoder: float) -> None:
    net = Wide().half()
    dictionary = make_encoder(torch.tensor([[encoder]]), torch.zeros(1))
    fam = LayerGradFam(net, net.layer, dictionary, site=(net.head, "in"))
    image = torch.ones(1, 1, 64, 64).half()
    # 1e-6 / 4096 is far below float16's smallest number, 6e-8; 1e6 above its largest, 65504.
    expected = torch.full((1, 1, 64, 64), encoder / 4096)
    torch.testing.assert_close(fam.attribute(image), expected, rtol=1e-3, atol=0)


def test_autocast_does_not_round_the_latent(resnet_fam: LayerGradFam, x: Tensor) -> None:
    expected = resnet_fam.attribute(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        heat = resnet_fam.attribute(x, 1)
    assert (heat - expected).abs().max() < 0.05 * expected.abs().max()


def test_in_place_operations_after_the_layer_do_not_reach_the_map(make_encoder: Any) -> None:
    class InPlace(Wide):
        def forward(self, x: Tensor) -> Tensor:
            kept = self.layer(x)
            kept.mul_(2).relu_()
            result: Tensor = self.head(kept.mean((2, 3)))
            result.zero_()
            return result

    net = InPlace()
    dictionary = make_encoder(torch.ones(1, 1), torch.zeros(1))
    fam = LayerGradFam(net, net.layer, dictionary, site=(net.head, "in"))
    image = torch.tensor([[1.0, -2.0], [3.0, 4.0]])[None, None]
    # dz/dA is 2/4 where A > 0 and 0 at the -2: mean 3/8; the map keeps A's own -2.
    assert fam.attribute(image).tolist() == [[[[0.375, -0.75], [1.125, 1.5]]]]


def test_several_inputs_and_additional_arguments_reach_the_model(make_encoder: Any) -> None:
    class Sum(Wide):
        def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:  # type: ignore[override] # another model
            return super().forward(x + y * factor)

    net = Sum()
    dictionary = make_encoder(torch.ones(1, 1), torch.zeros(1))
    fam = LayerGradFam(net, net.layer, dictionary, site=(net.head, "in"))
    ones = torch.ones(1, 1, 1, 1)
    assert fam.attribute((ones, ones), 0, additional_forward_args=(3.0,)).item() == 4.0
    assert fam.attribute((ones, ones), 0, additional_forward_args=3.0).item() == 4.0
    assert fam.attribute((ones, ones), 0).item() == 2.0


def test_it_works_with_data_parallel(
    digits_resnet: Any, resnet_fam: LayerGradFam, x: Tensor
) -> None:
    expected = resnet_fam.attribute(x, 1)
    resnet_fam.forward_func = nn.DataParallel(digits_resnet)
    assert torch.equal(resnet_fam.attribute(x, 1), expected)


def test_a_noise_tunnel_averages_its_maps(resnet_fam: LayerGradFam, x: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        smooth = NoiseTunnel(resnet_fam).attribute(
            x, nt_samples=3, stdevs=0.2, target=torch.tensor([3, 1])
        )
        torch.manual_seed(0)
        noisy = x.repeat_interleave(3, 0) + torch.normal(0, torch.full((6, 1, 32, 32), 0.2))
    each = resnet_fam.attribute(noisy, torch.tensor([3, 1]).repeat_interleave(3))
    torch.testing.assert_close(smooth, each.reshape(2, 3, 1, 4, 4).mean(1))


class MeanDifference(Classifier):  # type: ignore[misc] # captum is untyped
    """The direction between the means of two concepts."""

    def __init__(self) -> None:
        self.direction, self.labels = torch.zeros(0), [0]

    def train_and_eval(self, dataloader: Any, **_: Any) -> None:
        rows, labels = (torch.cat(parts) for parts in zip(*dataloader, strict=True))
        self.labels = sorted(set(labels.tolist()))
        means = [rows[labels == label].mean(0) for label in self.labels]
        self.direction = means[1] - means[0]

    def weights(self) -> Tensor:
        return torch.stack([-self.direction, self.direction])

    def classes(self) -> list[int]:
        return self.labels


def test_tcav_moves_it_from_layer_to_layer(
    digits_resnet: Any,
    resnet_fam: LayerGradFam,
    digits_train: Split,
    x: Tensor,
    tmp_path: Path,
) -> None:
    def concept(index: int, name: str, images: Tensor) -> Concept:
        return Concept(index, name, [images])

    round_ones = digits_train.images[digits_train.labels == 0][:4]
    straight_ones = digits_train.images[digits_train.labels == 1][:4]
    pair = [concept(0, "round", round_ones), concept(1, "straight", straight_ones)]
    tcav = TCAV(
        digits_resnet,
        ["layer3", "layer4"],
        layer_attr_method=resnet_fam,
        classifier=MeanDifference(),
        save_path=str(tmp_path),
    )
    scores = tcav.interpret(x, [pair], target=2, attr_dim_summation=False)["0-1"]
    for name in ("layer3", "layer4"):
        resnet_fam.layer = getattr(digits_resnet, name)
        heat = resnet_fam.attribute(x, 2, attr_dim_summation=False).flatten(1)
        weights = tcav.cavs["0-1"][name].stats["weights"]
        torch.testing.assert_close(scores[name]["magnitude"], (heat @ weights.T).mean(0))
    assert resnet_fam.layer is digits_resnet.layer4


def attached(
    model: nn.Module, look: Site | None, *others: Site, head: str, width: int
) -> HookedModel:
    sites = [*others, Site(HEAD_INPUT, head, "in", "pooled", width, readers=(head,))]
    if look is not None and look not in sites:
        sites.insert(0, look)
    return HookedModel(model, sites, attribution_site=look, description={})


def trained_like(site: Site) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    encoder, atoms = torch.randn(2, 8, site.width, generator=generator)
    tensors = {
        "encoder_weight": encoder,
        "encoder_bias": torch.randn(8, generator=generator),
        "atoms": nn.functional.normalize(atoms),
        "decoder_bias": torch.zeros(site.width),
    }
    return Dictionary(tensors, create("l1", {}), site)


def test_of_finds_the_map_and_gives_the_closed_form(digits_resnet: Any, x: Tensor) -> None:
    look = Site("blocks.3.hook_resid_post", "layer4", "out", "nchw", 128)
    hooked = attached(digits_resnet, look, head="fc", width=128)
    dictionary = trained_like(hooked.site(HEAD_INPUT))
    heat = LayerGradFam.of(hooked, dictionary).attribute(x, 3)
    with torch.no_grad():
        maps = digits_resnet.forward_features(x)
        latent = dictionary.pre_activation(digits_resnet.forward_head(maps, pre_logits=True))[:, 3]
    closed = torch.einsum("k,bkhw->bhw", dictionary.encoder_weight[3] / 16, maps)[:, None]
    torch.testing.assert_close(heat, closed, rtol=1e-5, atol=1e-6)
    at_zero = dictionary.pre_activation(torch.zeros(1, 128))[0, 3]
    torch.testing.assert_close(heat.sum((1, 2, 3)), latent - at_zero, rtol=1e-5, atol=1e-5)
    assert LayerAttribution.interpolate(heat, (32, 32)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("module", "side"), [("blocks.3.norm1", "out"), ("blocks.3.attn", "in")], ids=["out", "in"]
)
def test_of_finds_the_patches_that_the_class_token_reads(
    digits_vit: Any, x: Tensor, module: str, side: Side
) -> None:
    look = Site("blocks.3.ln1.hook_normalized", module, side, "tokens", 64, 1, (4, 4))
    hooked = attached(digits_vit, look, head="head", width=64)
    dictionary = trained_like(hooked.site(HEAD_INPUT))
    fam = LayerGradFam.of(hooked, dictionary)
    by_hand = LayerGradFam(
        digits_vit, digits_vit.blocks[3].norm1, dictionary, site=(digits_vit.head, "in"),
        tokens=(1, (4, 4)),
    )  # fmt: skip
    assert torch.equal(fam.attribute(x, 3), by_hand.attribute(x, 3))
    assert torch.equal(
        LayerGradFam.of(hooked, dictionary, layer=look.name).attribute(x, 3), fam.attribute(x, 3)
    )
    fam.layer = digits_vit.blocks[2].norm1  # reassigned, it is the new layer's output again
    by_hand.layer = digits_vit.blocks[2].norm1
    assert torch.equal(fam.attribute(x, 3), by_hand.attribute(x, 3))


def test_of_explains_a_hidden_dictionary_at_its_own_site(digits_resnet: Any, x: Tensor) -> None:
    hidden = Site("blocks.1.hook_resid_post", "layer2", "out", "nchw", 32)
    hidden = Site(hidden.name, "layer2", "out", "nchw", digits_resnet.layer2[0].conv2.out_channels)
    look = Site("blocks.3.hook_resid_post", "layer4", "out", "nchw", 128)
    hooked = attached(digits_resnet, look, hidden, head="fc", width=128)
    assert LayerGradFam.of(hooked, trained_like(hidden)).layer is digits_resnet.layer2


@pytest.mark.parametrize("layout", ["pooled", "tokens"])
def test_of_says_what_to_pass_when_there_is_nowhere_to_look(
    digits_resnet: Any, layout: Layout
) -> None:
    shown = Site("blocks.2.hook_resid_post", "layer3", "out", "nchw", 64)
    hooked = attached(digits_resnet, None, shown, head="fc", width=128)
    dictionary = trained_like(hooked.site(HEAD_INPUT))
    with pytest.raises(AttributionError, match=r"layer=.*blocks\.2\.hook_resid_post"):
        LayerGradFam.of(hooked, dictionary)
    nowhere = Site("flat", "global_pool", "out", layout, 128)
    with pytest.raises(AttributionError, match=r"'flat'.*blocks\.2\.hook_resid_post"):
        LayerGradFam.of(hooked, dictionary, layer=nowhere)
    with pytest.raises(UnknownSiteError, match=r"no site 'blocks\.9'"):
        LayerGradFam.of(hooked, dictionary, layer="blocks.9")
    with pytest.raises(InputError, match="reads 64 features"):
        LayerGradFam.of(hooked, trained_like(Site(HEAD_INPUT, "fc", "in", "pooled", 64)))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_vit3", "test_mambaout"])
def test_of_works_on_what_the_timm_adapter_finds(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model(name, num_classes=4).eval()
        image = torch.randn(1, 3, 160, 160)
    hooked = attach(model)
    dictionary = trained_like(hooked.site(HEAD_INPUT))
    heat = LayerGradFam.of(hooked, dictionary).attribute(image, 5)
    look = hooked.attribution_site
    assert look is not None
    assert heat.shape == ((1, 1, *look.grid) if look.grid else (1, 1, 5, 5))
    assert heat.any()
    if name == "test_resnet":  # its map is averaged, so the closed form holds
        latent = dictionary.pre_activation(model.forward_head(model.forward_features(image), True))
        at_zero = dictionary.pre_activation(torch.zeros(dictionary.width))
        assert heat.sum().item() == pytest.approx((latent[0] - at_zero)[5].item(), rel=1e-5)


def test_the_parts_of_several_devices_are_joined_in_data_parallels_order() -> None:
    seen = {torch.device("cuda", index): torch.zeros(0) for index in (1, 0, 2)}
    order = _device_order(seen, [2, 0, 1])
    assert [device.index for device in order] == [2, 0, 1]
    with pytest.raises(AttributionError, match="device_ids"):
        _device_order(seen, None)
