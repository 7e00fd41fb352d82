"""Whether a site is exact is measured, and a weak edit or an idle model proves nothing."""

import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
from small_network import small
from torch import Tensor, nn
from torch.nn import functional

from salve_plugin import Gate, HookedModel, LowRankMap, LowRankUpdate, Site, edit_at
from salve_plugin.control.operators import Operator, Role
from salve_plugin.errors import InputError, UnsupportedModelError

AXIS = torch.full((6, 1), 6**-0.5)
ORIGIN = torch.zeros(1)


class Leaky(nn.Module):
    """Two layers read the same features; of the site that names one, a GELU uses them as well."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak = leak
        self.body = nn.Linear(3, 6)
        self.act = nn.Tanh()
        self.fc = nn.Linear(6, 6)
        self.conv = SamePadded(6, 6, 3)
        self.head = nn.Linear(6, 4)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("passes").add_(1)
        features = self.act(self.body(x))
        hidden = self.fc(features) + self.leak * functional.gelu(features)
        image = hidden[:, :, None, None].expand(-1, -1, 2, 3)
        logits: Tensor = self.head(self.conv(input=image).mean((2, 3)))
        return logits


class SamePadded(nn.Conv2d):
    """A convolution that pads its input itself."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (1, 1, 1, 1)))


def leaky(leak: float) -> HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Leaky(leak).eval()
        probe = torch.randn(2, 3)
    sites = [
        Site("features", "act", "out", "pooled", 6, readers=("fc",)),
        Site("hidden", "conv", "in", "nchw", 6, readers=("conv",)),
    ]
    return HookedModel(
        model, sites, attribution_site=None, heads={}, probe=probe,
        description={"family": "test"},
    )  # fmt: skip


OPERATORS: list[Operator] = [
    LowRankMap(AXIS, AXIS, torch.zeros(1)),
    LowRankMap(AXIS, AXIS, torch.zeros(1), 1 - 1e-6),
    LowRankMap(AXIS, AXIS, torch.ones(1), 1.0),
    Gate(AXIS.T, 0.0),
    Gate(AXIS.T, 1e-7),
    Gate(AXIS.T, 1e-12),
    Gate(AXIS.T, 1.0),
    Gate(AXIS.T, 1e-9, "enhance"),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.form)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_weak_edit_slips_through_where_strong_ones_are_wrong(
    operator: Operator, dtype: torch.dtype
) -> None:
    assert edit_at(leaky(0.0).to(dtype), "features", operator).exactness is not None
    with pytest.raises(UnsupportedModelError, match=r"not linear uses the site.*\['hidden'\]"):
        edit_at(leaky(0.1).to(dtype), "features", operator)


def test_what_was_measured_is_not_claimed_of_another_strength() -> None:
    edit = edit_at(leaky(0.0), "features", Gate(AXIS.T, 0.5))
    assert edit.exactness is not None
    assert edit.with_strength(2.0).exactness is None


def test_the_measured_model_is_left_exactly_as_it_was() -> None:
    hooked = leaky(0.1).train()
    model = hooked.model
    model(torch.ones(2, 3)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [parameter.grad for parameter in model.parameters()]
    edit_at(hooked, "hidden", LowRankMap(AXIS, AXIS, torch.zeros(1)))
    with pytest.raises(UnsupportedModelError):
        edit_at(hooked, "features", LowRankMap(AXIS, AXIS, torch.zeros(1)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks for module in model.modules())
    assert [p.grad for p in model.parameters()] == grads
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_edit_is_measured_without_those_that_are_on_the_model() -> None:
    hooked = leaky(0.0)
    edit = edit_at(hooked, "features", LowRankMap(AXIS, AXIS, torch.ones(1)))
    with edit_at(hooked, "features", Gate(AXIS.T, 1.0)).applied(hooked):
        again = edit_at(hooked, "features", LowRankMap(AXIS, AXIS, torch.ones(1)))
    assert again == edit
    assert again.exactness == edit.exactness


def test_a_layer_that_pads_by_itself_and_is_called_with_keywords() -> None:
    hooked = leaky(0.1)
    edit = edit_at(hooked, "hidden", LowRankUpdate(torch.randn(6, 2), torch.randn(54, 2)))
    assert edit.exactness is not None
    assert edit.exactness.effect > 0
    shifted = replace(edit.operator, shift=torch.randn(6))  # type: ignore[type-var] # an update is a dataclass
    assert edit_at(hooked, "hidden", shifted).exactness is not None
    assert edit_at(hooked, "hidden", Gate(AXIS.T, 1.0), rows=[1, 4]).exactness is not None
    with pytest.raises(UnsupportedModelError, match="not linear"):  # the padding has no offset
        edit_at(hooked, "hidden", LowRankMap(AXIS, AXIS, torch.ones(1)))


def test_a_model_that_cannot_be_copied_says_so() -> None:
    hooked = leaky(0.0)
    hooked.model.cache = hooked.model.get_submodule("body")(torch.ones(1, 3))
    with pytest.raises(UnsupportedModelError, match="cannot be copied"):
        edit_at(hooked, "features", Gate(AXIS.T, 1.0))


def test_what_a_refusal_names_really_takes_the_edit() -> None:
    hooked = small()
    refusals: list[tuple[str, Role, Operator, str]] = []
    for name, site in hooked.sites.items():
        axis = torch.full((site.width, 1), site.width**-0.5)
        for operator in (Gate(axis.T, 1.0), LowRankMap(axis, axis, torch.ones(1))):
            for role in get_args(Role):
                try:
                    edit_at(hooked, name, operator, role=role)
                except (UnsupportedModelError, InputError) as error:
                    refusals.append((name, role, operator, str(error)))
    assert refusals
    for name, role, refused, message in refusals:
        assert named(message), message
        for other, other_role in named(message):
            assert (other, other_role) != (name, role)
            edit_at(hooked, other, like(refused, hooked.site(other)), role=other_role)


def named(message: str) -> list[tuple[str, Role | None]]:
    """Return the sites, and the roles if they have to be given, that a refusal names."""
    entries = re.findall(r"'([^']+?)(?: with role='(reader|writer)')?'", message.split("one of")[1])
    entries += re.findall(r"\"([^\"]+?) with role='(reader|writer)'\"", message.split("one of")[1])
    return [(site, role or None) for site, role in entries if site in small().sites]


def like(operator: Operator, site: Site) -> Operator:
    """Return an operator of the same form along another direction of another site."""
    axis = torch.eye(site.width)[:, :1]
    return Gate(axis.T, 1.0) if isinstance(operator, Gate) else LowRankMap(axis, axis, ORIGIN + 1)


def test_an_autocast_region_around_it_changes_nothing() -> None:
    hooked = leaky(0.0)
    edit = edit_at(hooked, "hidden", LowRankMap(AXIS, AXIS, ORIGIN))
    with torch.autocast("cpu", torch.bfloat16):
        assert edit_at(hooked, "hidden", LowRankMap(AXIS, AXIS, ORIGIN)).exactness == edit.exactness
