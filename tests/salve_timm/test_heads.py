"""Which classifiers are found, and why others are refused."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.errors import UnsupportedModelError
from salve_plugin.hooks import reading
from salve_plugin.site import HEAD_INPUT


def create(name: str, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, **arguments)
    return model.eval()


def test_a_convolutional_head_is_a_linear_one_at_one_position() -> None:
    model = create("dla46x_c", num_classes=4)
    hooked = attach(model)
    site = hooked.site(HEAD_INPUT)
    assert isinstance(model.get_submodule(site.module), nn.Conv2d)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    weight, bias = hooked.unembed()
    assert weight.shape == (4, site.width)
    with torch.no_grad(), reading(model, [site]) as seen:
        logits = model(images)
    torch.testing.assert_close(site.rows(seen[HEAD_INPUT]) @ weight.T + bias, logits)


def test_the_width_is_the_layer_s_own() -> None:
    # MobileNetV3 has 288 channels in its map and 1024 features in front of the classifier.
    model = create("mobilenetv3_small_050", num_classes=3)
    assert model.num_features == 288
    assert attach(model).site(HEAD_INPUT).width == model.get_parameter("classifier.weight").shape[1]


def test_the_named_layer_in_a_container_is_found() -> None:
    hooked = attach(create("efficientvit_b0", num_classes=3))
    assert hooked.site(HEAD_INPUT).readers == ("head.classifier.4",)


def test_without_a_name_the_method_and_the_layer_that_ran_last_are_taken() -> None:
    model: Any = create("efficientvit_b0", num_classes=3)
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    assert attach(model).site(HEAD_INPUT).readers == ("head.classifier.4",)


def test_heads_on_one_tensor_share_a_site() -> None:
    hooked = attach(create("efficientformerv2_s0", num_classes=3))
    assert hooked.head_sites == (HEAD_INPUT,)
    assert hooked.site(HEAD_INPUT).readers == ("head", "head_dist")
    weight, _ = hooked.unembed()
    heads = [hooked.model.get_parameter(f"{name}.weight") for name in ("head", "head_dist")]
    torch.testing.assert_close(weight, torch.stack([each.detach() for each in heads]).mean(0))


def test_heads_on_two_tensors_have_a_site_each() -> None:
    model = create(
        "deit_tiny_distilled_patch16_224", num_classes=3, img_size=32, depth=1, embed_dim=48
    )
    hooked = attach(model)
    assert hooked.head_sites == (HEAD_INPUT, "unembed_dist.hook_in")
    assert hooked.heads == {"head": 0.5, "head_dist": 0.5}


@pytest.mark.slow
def test_learned_shares_of_heads_are_found_from_the_logits() -> None:
    model = create("efficientvim_m1", num_classes=50)
    model.get_parameter("weights").data = torch.tensor([0.5, 1.0, -1.0, 2.0])
    hooked = attach(model)
    expected = model.get_parameter("weights").softmax(0)
    torch.testing.assert_close(
        torch.tensor(list(hooked.heads.values())), expected.detach(), rtol=1e-4, atol=1e-5
    )


def test_fresh_heads_that_are_all_zero_are_told_apart() -> None:
    model: Any = create(
        "deit_tiny_distilled_patch16_224", num_classes=3, img_size=32, depth=1, embed_dim=48
    )
    for name in ("head", "head_dist"):
        for parameter in model.get_submodule(name).parameters():
            parameter.data.zero_()
    assert attach(model).heads == {"head": 0.5, "head_dist": 0.5}
    model.pretrained_cfg = {"classifier": "head", "input_size": (3, 32, 32)}  # one is not all
    assert attach(model).heads == {"head": 0.5, "head_dist": 0.5}


@pytest.mark.parametrize("make", ["num_classes", "reset", "features_only"])
def test_a_model_without_classifier_is_refused_with_what_was_found(make: str) -> None:
    if make == "num_classes":
        model = create("test_vit", num_classes=0)
    elif make == "reset":
        model = create("test_resnet")
        model.reset_classifier(0)  # type: ignore[operator] # timm's method
    else:
        model = create("test_resnet", features_only=True)
    with pytest.raises(UnsupportedModelError, match=r"has no classifier.*Create the model with"):
        attach(model)


def test_a_model_without_pooling_is_refused() -> None:
    model = create("test_convnext", num_classes=3, global_pool="")
    with pytest.raises(UnsupportedModelError):
        attach(model)


def test_a_classifier_that_is_not_linear_is_refused() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).tanh()

    model = create("test_resnet", num_classes=3)
    model.fc = Scaled(model.fc.in_features, 3)  # type: ignore[union-attr, arg-type] # a Linear
    with pytest.raises(UnsupportedModelError, match=r"not linear.*\['fc'\]: no weighted sum"):
        attach(model)


def test_an_auxiliary_head_is_refused_with_the_way_out() -> None:
    small = {"num_classes": 3, "img_size": 64, "stem_hidden_dim": 8}
    model = create("volo_d1_224", **small)
    with pytest.raises(UnsupportedModelError, match="use_aux_head=False"):
        attach(model)
    hooked = attach(create("volo_d1_224", **small, use_aux_head=False))
    assert hooked.heads == {"head": 1.0}


def test_weights_that_give_nan_are_refused() -> None:
    model = create("test_resnet", num_classes=3)
    model.get_parameter("fc.weight").data[0, 0] = torch.nan
    with pytest.raises(UnsupportedModelError, match="NaN"):
        attach(model)


def test_the_meta_device_has_shapes_only_and_finds_the_same_sites() -> None:
    with torch.device("meta"):
        hollow = create("test_vit", num_classes=3)
    real = attach(create("test_vit", num_classes=3))
    hooked = attach(hollow)
    assert (hooked.description["verified"], real.description["verified"]) == ("shapes", "values")
    assert dict(hooked.sites) == dict(real.sites)
    assert hooked.attribution_site == real.attribution_site


def test_the_meta_device_attaches_no_part_of_a_classifier() -> None:
    with torch.device("meta"):
        levit = create("levit_384_s8", num_classes=3)  # timm names only one of its two heads
        volo = create("volo_d1_224", num_classes=3)
    assert attach(levit).heads == {"head.linear": 0.5, "head_dist.linear": 0.5}
    with pytest.raises(UnsupportedModelError, match="use_aux_head=False"):
        attach(volo)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_precisions_attach(kind: torch.dtype) -> None:
    hooked = attach(create("test_resnet", num_classes=3).to(kind))
    assert hooked.description["verified"] == "values"


def test_attaching_works_within_inference_mode() -> None:
    model = create("test_vit", num_classes=3)
    with torch.inference_mode():
        assert attach(model).attribution_site is not None
