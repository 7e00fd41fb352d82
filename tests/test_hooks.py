"""Hook points: what they see, what they change, and what they leave behind."""

import copy
import pickle
from inspect import unwrap
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.errors import HookNotFiredError, InputError, UnknownSiteError
from salve_plugin.hook_points import HookPoint
from salve_plugin.hooks import HookedModel, reading, tapped
from salve_plugin.site import HEAD_INPUT, Site


class Tiny(nn.Module):
    """A body with an in-place activation and two heads that are averaged."""

    def __init__(self, *, same_input: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Linear(3, 4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)
        self.head_dist = nn.Linear(4, 2)
        self.same_input = same_input
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.body(x))
        other = x if self.same_input else x * 2
        mean: Tensor = (self.head(x) + self.head_dist(other)) / 2
        return mean


BODY = Site("blocks.0.hook_resid_post", "body", "out", "pooled", 4)
HEADS = {"head": 0.5, "head_dist": 0.5}


def one_site() -> HookedModel:
    head = Site(HEAD_INPUT, "head", "in", "pooled", 4, readers=("head", "head_dist"))
    return HookedModel(Tiny(), [BODY, head], attribution_site=None, description={}, heads=HEADS)


def two_sites() -> HookedModel:
    sites = [
        BODY,
        Site(HEAD_INPUT, "head", "in", "pooled", 4, readers=("head",)),
        Site("unembed_dist.hook_in", "head_dist", "in", "pooled", 4, readers=("head_dist",)),
    ]
    model = Tiny(same_input=False)
    return HookedModel(model, sites, attribution_site=None, description={}, heads=HEADS)


def hooks_on(model: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


IMAGES = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_an_idle_forward_pass_is_the_bare_one() -> None:
    hooked = one_site()
    assert torch.equal(hooked(IMAGES), hooked.model(IMAGES))
    assert hooks_on(hooked.model) == 0
    assert list(hooked.state_dict()) == [f"model.{name}" for name in hooked.model.state_dict()]


def test_the_cache_is_not_changed_by_a_later_in_place_operation() -> None:
    hooked = one_site()
    output, cache = hooked.run_with_cache(IMAGES)
    expected = IMAGES @ hooked.model.body.weight.T + hooked.model.body.bias  # type: ignore[operator, union-attr] # Tiny's layers
    torch.testing.assert_close(cache[BODY.name], expected)
    torch.testing.assert_close(cache[HEAD_INPUT], expected.relu())
    assert torch.equal(output, hooked.model(IMAGES))
    assert not any(each.requires_grad for each in cache.values())
    assert hooks_on(hooked.model) == 0


@pytest.mark.parametrize(
    ("names_filter", "expected"),
    [
        (None, [BODY.name, HEAD_INPUT]),
        (HEAD_INPUT, [HEAD_INPUT]),
        ([HEAD_INPUT], [HEAD_INPUT]),
        (lambda name: name.startswith("blocks"), [BODY.name]),
    ],
)
def test_the_cache_holds_what_the_filter_names(names_filter: Any, expected: list[str]) -> None:
    _, cache = one_site().run_with_cache(IMAGES, names_filter=names_filter)
    assert list(cache) == expected


def test_a_replaced_value_reaches_every_reader_and_the_function_runs_once() -> None:
    hooked = one_site()
    calls = []

    def zero(tensor: Tensor, hook: Any) -> Tensor:
        calls.append(hook.name)
        return torch.zeros_like(tensor)

    output = hooked.run_with_hooks(IMAGES, fwd_hooks=[(HEAD_INPUT, zero)])
    _, bias = hooked.unembed()
    torch.testing.assert_close(output, bias.expand(5, 2))
    assert calls == [HEAD_INPUT]
    assert torch.equal(hooked(IMAGES), hooked.model(IMAGES))


def test_backward_hooks_see_autograd_s_gradient_and_may_replace_it() -> None:
    hooked = one_site()
    seen: dict[str, Tensor] = {}

    def double(gradient: Tensor, hook: Any) -> Tensor:
        seen[hook.name] = gradient.clone()
        return 2 * gradient

    images = IMAGES.clone().requires_grad_()
    with hooked.hooks(bwd_hooks=[(BODY.name, double)]):
        hooked(images).sum().backward()
    with reading(hooked.model, [BODY]) as kept:
        plain = IMAGES.clone().requires_grad_()
        loss = hooked.model(plain).sum()
    assert kept[BODY.name].shape == (5, 4)
    (expected,) = torch.autograd.grad(loss, plain)
    assert images.grad is not None
    torch.testing.assert_close(images.grad, 2 * expected)
    torch.testing.assert_close(seen[BODY.name] @ hooked.model.body.weight, expected)  # type: ignore[operator, union-attr] # Tiny's layer


def test_gradients_are_cached_on_request() -> None:
    hooked = one_site()
    scalar = HookedModel(
        nn.Sequential(hooked.model, nn.Flatten(0), nn.Linear(10, 1, bias=False)),
        [Site("hook_logits", "2", "in", "pooled", 10)],
        attribution_site=None,
        description={},
    )
    _, cache = scalar.run_with_cache(IMAGES, incl_bwd=True)
    weight = scalar.model.get_parameter("2.weight")
    torch.testing.assert_close(cache["hook_logits_grad"], weight.detach()[0])


def test_inner_contexts_remove_their_own_functions_only() -> None:
    hooked = one_site()
    seen: list[str] = []
    with hooked.hooks([(BODY.name, lambda tensor, hook: seen.append("outer"))]):
        with hooked.hooks([(BODY.name, lambda tensor, hook: seen.append("inner"))]):
            hooked(IMAGES)
        hooked(IMAGES)
    hooked(IMAGES)
    assert seen == ["outer", "inner", "outer"]


def test_added_hooks_stay_until_they_are_reset_and_permanent_ones_longer() -> None:
    hooked = one_site()
    seen: list[str] = []
    hooked.add_hook(BODY.name, lambda tensor, hook: seen.append("added"))
    hooked.add_perma_hook(BODY.name, lambda tensor, hook: seen.append("permanent"))
    hooked(IMAGES)
    hooked.reset_hooks()
    hooked(IMAGES)
    hooked.reset_hooks(including_permanent=True)
    hooked(IMAGES)
    assert seen == ["added", "permanent", "permanent"]


def test_a_test_of_names_adds_the_function_everywhere_it_holds() -> None:
    hooked = one_site()
    seen: list[str] = []
    hooked.run_with_hooks(
        IMAGES, fwd_hooks=[(lambda name: True, lambda tensor, hook: seen.append(hook.name))]
    )
    assert seen == [BODY.name, HEAD_INPUT]


def test_hooks_are_gone_after_an_error() -> None:
    hooked = one_site()

    def fail(tensor: Tensor, hook: Any) -> None:
        raise RuntimeError("in the hook")

    with pytest.raises(RuntimeError, match="in the hook"):
        hooked.run_with_hooks(IMAGES, fwd_hooks=[(BODY.name, fail)])
    assert hooks_on(hooked.model) == 0
    assert torch.equal(hooked(IMAGES), hooked.model(IMAGES))
    with (
        pytest.raises(RuntimeError, match="of the caller"),
        tapped(hooked.model, BODY, lambda x: x),
    ):
        raise RuntimeError("of the caller")
    assert hooks_on(hooked.model) == 0


def test_a_wrong_name_lists_the_right_ones() -> None:
    hooked = one_site()
    with pytest.raises(UnknownSiteError, match=HEAD_INPUT):
        hooked.site("unembed.hook_out")
    with pytest.raises(UnknownSiteError, match=HEAD_INPUT):
        hooked.run_with_cache(IMAGES, names_filter="unembed.hook_out")


def test_a_requested_hook_that_does_not_fire_is_an_error() -> None:
    hooked = one_site()
    hooked.model.body = nn.Sequential(nn.Linear(3, 4))
    hooked.model.act = nn.Identity()
    hooked.run_with_cache(IMAGES)
    del hooked.model.head
    with pytest.raises(HookNotFiredError, match="attach the model again"):
        hooked.run_with_cache(IMAGES, names_filter=HEAD_INPUT)


def test_a_module_that_is_passed_over_is_reported_by_both_ways_of_reading() -> None:
    hooked = one_site()
    hooked.model.forward = lambda x: x
    with pytest.raises(HookNotFiredError, match="never computed"):
        hooked.run_with_cache(IMAGES)
    with pytest.raises(HookNotFiredError, match="never computed"), reading(hooked.model, [BODY]):
        hooked.model(IMAGES)


def test_heads_on_one_input_add_up() -> None:
    hooked = one_site()
    weight, bias = hooked.unembed()
    with reading(hooked.model, [hooked.site(HEAD_INPUT)]) as seen:
        logits = hooked(IMAGES)
    torch.testing.assert_close(seen[HEAD_INPUT] @ weight.T + bias, logits)
    assert not weight.requires_grad
    weight.zero_()
    assert torch.equal(hooked(IMAGES), logits)


def test_heads_on_two_inputs_give_their_terms_on_request_only() -> None:
    hooked = two_sites()
    assert hooked.head_sites == (HEAD_INPUT, "unembed_dist.hook_in")
    with pytest.raises(InputError, match="partial=True"):
        hooked.unembed()
    with reading(hooked.model, [hooked.site(name) for name in hooked.head_sites]) as seen:
        logits = hooked(IMAGES)
    total = torch.zeros(5, 2)
    for name in hooked.head_sites:
        weight, bias = hooked.unembed(name, partial=True)
        total += seen[name] @ weight.T + bias
    torch.testing.assert_close(total, logits)


def test_unembed_refuses_a_site_that_the_classifier_does_not_read() -> None:
    with pytest.raises(InputError, match="does not read"):
        one_site().unembed(BODY.name)


@pytest.mark.usefixtures("untyped")
def test_unembed_refuses_what_is_no_site() -> None:
    nothing: Any = None
    with pytest.raises(UnknownSiteError, match=HEAD_INPUT):
        one_site().unembed(nothing)


def test_unembed_refuses_a_classifier_that_is_gone() -> None:
    hooked = one_site()
    hooked.model.head = nn.Identity()
    with pytest.raises(InputError, match="reset"):
        hooked.unembed()


def test_unembed_is_at_least_single_precision() -> None:
    hooked = one_site()
    hooked.model.bfloat16()
    assert hooked.unembed()[0].dtype == torch.float32
    hooked.model.double()
    assert hooked.unembed()[0].dtype == torch.float64


def test_two_sites_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"hook_resid_post"):
        HookedModel(Tiny(), [BODY, BODY], attribution_site=None, description={})


def test_copies_and_pickles_work_and_are_independent() -> None:
    hooked = one_site()
    expected = hooked(IMAGES)
    for twin in (copy.deepcopy(hooked), pickle.loads(pickle.dumps(hooked))):
        assert torch.equal(twin(IMAGES), expected)
        twin.add_hook(HEAD_INPUT, lambda tensor, hook: tensor * 0)
        assert not torch.equal(twin(IMAGES), expected)
        assert torch.equal(hooked(IMAGES), expected)


def test_attributes_of_the_bare_model_are_within_reach() -> None:
    hooked = one_site()
    assert hooked.same_input is True
    assert hooked.head_dist is hooked.model.head_dist
    with pytest.raises(AttributeError, match="nowhere"):
        _ = hooked.nowhere


def test_functions_come_in_order_and_handles_remove_them() -> None:
    hooked, seen = one_site(), []
    point = hooked.hook_dict[BODY.name]
    last = point.add_hook(lambda tensor, hook: seen.append("last"))
    point.add_hook(lambda tensor, hook: seen.append("first"), prepend=True, level=7)
    point.register_forward_hook(lambda *_: seen.append("torch's own"))
    hooked(IMAGES)
    assert seen == ["first", "last", "torch's own"]
    assert [handle.level for handle in point.fwd_hooks] == [7, None]
    hooked.reset_hooks(level=7)
    last.hook.remove()
    assert not point.has_hooks()
    hooked(IMAGES)
    assert seen[3:] == ["torch's own"]


def test_functions_that_a_call_leaves_behind_are_everybody_s_until_they_are_reset() -> None:
    hooked, seen = one_site(), []
    functions = [(BODY.name, lambda tensor, hook: seen.append(hook.name))]
    hooked.run_with_hooks(IMAGES, fwd_hooks=functions, reset_hooks_end=False)
    hooked(IMAGES)
    hooked.reset_hooks()
    hooked(IMAGES)
    assert seen == [BODY.name] * 2


def test_contexts_of_hook_points_are_cleared_on_request_only() -> None:
    hooked = one_site()
    for clear, left in ((False, {"kept": 1}), (True, {})):
        with hooked.hooks(clear_contexts=clear):
            hooked.hook_dict[BODY.name].ctx["kept"] = 1
        assert hooked.hook_dict[BODY.name].ctx == left


def test_a_gradient_may_come_back_in_a_tuple_and_functions_stay_off_the_caller_s_tensors() -> None:
    hooked = one_site()
    patch, gradients = torch.ones(5, 4, requires_grad=True), []

    def double(gradient: Tensor, hook: Any) -> tuple[Tensor]:
        gradients.append(gradient.clone())
        return (2 * gradient,)

    with hooked.hooks([(BODY.name, lambda tensor, hook: patch)], [(BODY.name, double)]):
        (gradient,) = torch.autograd.grad(hooked(IMAGES).sum(), patch)
    assert torch.equal(gradient, 2 * gradients[0])
    torch.autograd.grad(patch.sum(), patch)
    assert len(gradients) == 1


def test_the_images_that_a_model_is_known_to_accept_are_kept_beside_it() -> None:
    assert one_site().probe is None
    hooked = HookedModel(
        Tiny(), [BODY], attribution_site=None, description={}, heads=HEADS, probe=IMAGES
    )
    assert hooked.probe is IMAGES
    assert hooked(hooked.probe).shape == (5, 2)
    assert list(hooked.state_dict()) == [f"model.{name}" for name in hooked.model.state_dict()]


def test_attach_keeps_the_probe_that_it_verified_with(digits_network: nn.Module) -> None:
    images = torch.randn(3, 1, 32, 32, requires_grad=True)
    hooked = attach(digits_network, probe=images)
    assert hooked.probe is not None
    assert torch.equal(hooked.probe, images[:2])
    assert not hooked.probe.requires_grad
    hooked = attach(digits_network)
    assert hooked.probe is not None
    assert list(hooked.probe.shape[1:]) == hooked.description["input_size"]
    assert len(hooked.probe) <= 2
    with torch.device("meta"):
        bare = timm.create_model("test_resnet")
    assert attach(bare).probe is None


def test_a_hook_point_knows_its_block_and_refuses_other_directions() -> None:
    point = HookPoint()
    point.name = "blocks.3.hook_resid_post"
    assert point.layer() == 3
    point.name = "unembed.hook_in"
    with pytest.raises(InputError, match="no numbered block"):
        point.layer()
    with pytest.raises(InputError, match="sideways"):
        unwrap(HookPoint.add_hook)(point, print, dir="sideways")  # past the run's type checks


def test_the_batch_axis_is_removed_from_one_image_only(digits_resnet: Any) -> None:
    hooked = attach(digits_resnet)
    images = torch.randn(8, 1, 8, 8)
    kept = hooked.run_with_cache(images[:1])[1]
    removed = hooked.run_with_cache(images[:1], remove_batch_dim=True)[1]
    assert all(torch.equal(removed[name], kept[name][0]) for name in kept)
    with pytest.raises(InputError, match="has 8; run one image"):
        hooked.run_with_cache(images, remove_batch_dim=True)
