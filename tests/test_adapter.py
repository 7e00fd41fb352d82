"""Finding the adapter of a model among the installed ones."""

from importlib.metadata import EntryPoint
from inspect import unwrap

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin import adapter
from salve_plugin.adapter import ENTRY_POINT_GROUP, attach, installed_adapters
from salve_plugin.errors import SalveError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, ENTRY_POINT_GROUP)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> "Installed":
    return Installed(monkeypatch)


class Installed:
    """Stands for the entry points of an environment; discovery itself is the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def set(self, *points: EntryPoint) -> None:
        self._monkeypatch.setattr(adapter, "entry_points", lambda group: list(points))
        adapter._discovered.cache_clear()
        self._monkeypatch.setattr(
            adapter, "_discovered", adapter._discovered.__wrapped__, raising=True
        )


def test_the_timm_adapter_is_installed_and_attaches_networks(
    digits_network: nn.Module,
) -> None:
    assert "timm" in installed_adapters()
    hooked = attach(digits_network)
    assert isinstance(hooked, HookedModel)
    assert hooked.model is digits_network
    assert HEAD_INPUT in hooked.sites
    assert hooked.description["family"] == "timm"
    assert hooked.description["in_chans"] == 1


def test_attaching_twice_hooks_the_bare_model(digits_resnet: nn.Module) -> None:
    assert attach(attach(digits_resnet)).model is digits_resnet


def test_a_probe_of_one_s_own_is_used(digits_vit: nn.Module) -> None:
    probe = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert attach(digits_vit, probe=probe).description["verified"] == "values"
    with pytest.raises(UnsupportedModelError, match=r"\(3, 2, 32, 32\)"):
        attach(digits_vit, probe=probe.expand(3, 2, 32, 32))


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"torch.nn.Module, not str"):
        unwrap(attach)("resnet18")  # past the type checks of the test run


def test_a_model_of_no_family_is_refused_with_what_is_installed() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Linear; installed: \['timm'\]"):
        attach(nn.Linear(2, 2))


def test_an_adapter_whose_library_is_missing_is_skipped_and_named(installed: Installed) -> None:
    installed.set(point("timm", "salve_timm:TimmAdapter"), point("ghost", "no_such_library:A"))
    assert list(installed_adapters()) == ["timm"]
    with pytest.raises(UnsupportedModelError, match=r"'ghost' could not be loaded \(No module"):
        attach(nn.Linear(2, 2))


def test_a_second_adapter_under_a_built_in_s_name_is_refused(installed: Installed) -> None:
    installed.set(point("timm", "salve_timm:TimmAdapter"), point("timm", "other:Adapter"))
    with pytest.raises(SalveError, match=r"two adapters.*'timm'.*Uninstall one"):
        installed_adapters()


def test_one_adapter_listed_twice_is_one_adapter(installed: Installed) -> None:
    installed.set(*[point("timm", "salve_timm:TimmAdapter")] * 2)
    assert list(installed_adapters()) == ["timm"]


def test_two_adapters_that_claim_one_model_are_refused(installed: Installed) -> None:
    installed.set(
        point("timm", "salve_timm:TimmAdapter"), point("mine", "salve_timm.adapter:TimmAdapter")
    )
    with pytest.raises(UnsupportedModelError, match=r"\['mine', 'timm'\] all claim ResNet"):
        attach(timm.create_model("test_resnet"))


def test_gradients_modes_and_buffers_are_left_as_found(digits_resnet: nn.Module) -> None:
    digits_resnet.train()
    digits_resnet.get_submodule("layer1").eval()
    modes = [module.training for module in digits_resnet.modules()]
    before: dict[str, Tensor] = {k: v.clone() for k, v in digits_resnet.state_dict().items()}
    state = torch.random.get_rng_state()
    attach(digits_resnet)
    assert [module.training for module in digits_resnet.modules()] == modes
    assert all(torch.equal(value, before[k]) for k, value in digits_resnet.state_dict().items())
    assert all(parameter.grad is None for parameter in digits_resnet.parameters())
    assert "forward_features" not in vars(digits_resnet)
    assert torch.equal(torch.random.get_rng_state(), state)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in digits_resnet.modules()]
    assert sum(hooks) == 0
