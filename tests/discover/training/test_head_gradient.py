"""The gradient of the model's loss at the head's input."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.training.head_gradient import head_gradient
from salve_plugin.errors import InputError


def test_the_gradient_at_the_head_is_that_of_autograd(
    digits_network: nn.Module, digits_test: digits.Split
) -> None:
    hooked = attach(digits_network)
    site = hooked.site("unembed.hook_in")
    rows = torch.randn(30, site.width, generator=torch.Generator().manual_seed(5))
    weight, bias = hooked.unembed()
    leaf = rows.double().requires_grad_()
    logits = leaf @ weight.double().T + bias.double()
    functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert leaf.grad is not None
    torch.testing.assert_close(
        head_gradient(hooked)(rows).double(), leaf.grad, rtol=1e-4, atol=1e-6
    )
    exact = head_gradient(hooked, site)(rows.double())
    torch.testing.assert_close(exact, leaf.grad)


def test_a_site_that_the_head_does_not_read_has_no_such_gradient(digits_resnet: nn.Module) -> None:
    hooked = attach(digits_resnet)
    hidden = next(site for site in hooked.sites.values() if site.layout == "nchw")
    with pytest.raises(InputError, match="has layout 'nchw': the head reads no single row"):
        head_gradient(hooked, hidden)
