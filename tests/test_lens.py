"""The hooked model as TransformerLens' own `HookedRootModule`."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT

transformer_lens = pytest.importorskip(
    "transformer_lens", reason="transformer-lens is not installed: pip install transformer-lens"
)

pytestmark = pytest.mark.filterwarnings("default")  # of TransformerLens' own dependencies


def test_it_is_theirs_and_ours(digits_network: nn.Module) -> None:
    from transformer_lens.hook_points import HookPoint

    from salve_plugin.lens import HookedRootModule

    hooked = attach(digits_network)
    assert isinstance(hooked, HookedRootModule)
    assert isinstance(hooked, HookedModel)
    assert list(hooked.hook_dict) == list(hooked.sites)
    assert all(type(point) is HookPoint for point in hooked.hook_dict.values())
    assert type(hooked).run_with_hooks is HookedRootModule.run_with_hooks
    assert type(hooked).hooks is HookedRootModule.hooks
    assert not any(hasattr(module, "name") for module in digits_network.modules())
    assert hooked.probe is not None
    assert hooked(hooked.probe).shape == (len(hooked.probe), 10)
    assert list(hooked.state_dict()) == [f"model.{key}" for key in digits_network.state_dict()]


def test_their_cache_equals_ours(digits_network: nn.Module, digits_test: Any) -> None:
    images = digits_test.images[:4]
    hooked = attach(digits_network)
    ours = HookedModel(
        digits_network,
        list(hooked.sites.values()),
        attribution_site=hooked.attribution_site,
        description=hooked.description,
        heads=hooked.heads,
    )
    output, cache = hooked.run_with_cache(images)
    expected_output, expected = ours.run_with_cache(images)
    assert torch.equal(output, expected_output)
    assert list(cache) == list(expected)
    assert all(torch.equal(cache[name], expected[name]) for name in expected)
    assert torch.equal(hooked(images), digits_network(images))


def test_ablating_a_feature_by_hook_equals_zeroing_the_head_s_column(
    digits_network: nn.Module, digits_test: Any
) -> None:
    images = digits_test.images[:4]
    hooked = attach(digits_network)

    def ablate(tensor: Tensor, hook: Any) -> Tensor:
        tensor = tensor.clone()
        tensor[:, 3] = 0
        return tensor

    got = hooked.run_with_hooks(images, fwd_hooks=[(HEAD_INPUT, ablate)])
    edited = copy.deepcopy(digits_network)
    layer = edited.get_submodule(hooked.site(HEAD_INPUT).module)
    layer.get_parameter("weight").data[:, 3] = 0
    torch.testing.assert_close(got, edited(images))


def test_backward_hooks_equal_autograd(digits_network: nn.Module, digits_test: Any) -> None:
    images = digits_test.images[:4]
    hooked = attach(digits_network)
    name = next(iter(hooked.sites))
    seen: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        seen[hook.name] = gradient.clone()

    with hooked.hooks(bwd_hooks=[(name, keep), (HEAD_INPUT, keep)]):
        hooked(images)[:, 1].sum().backward()
    weight, _ = hooked.unembed()
    torch.testing.assert_close(seen[HEAD_INPUT], weight[1].expand(4, -1))
    assert int(seen[name].count_nonzero()) > 0


def test_copies_and_pickles_work(digits_network: nn.Module, digits_test: Any) -> None:
    images = digits_test.images[:2]
    hooked = attach(digits_network)
    for twin in (copy.deepcopy(hooked), pickle.loads(pickle.dumps(hooked))):
        assert torch.equal(twin(images), hooked(images))
        assert list(twin.hook_dict) == list(hooked.hook_dict)
