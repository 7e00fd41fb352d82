"""What lies between a layer and its site, as one affine map."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from salve_plugin.control.folds import fold_of


def _network(seed: int, dtype: torch.dtype) -> nn.Sequential:
    draw = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(4).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data = torch.rand(4, generator=draw) + 0.5
    return nn.Sequential(nn.Conv2d(3, 4, 1), norm).to(dtype)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    moved=st.floats(-1e6, 1e6),
)
def test_the_map_without_the_last_bias_does_not_depend_on_it(
    seed: int, dtype: torch.dtype, moved: float
) -> None:
    network = _network(seed, dtype)
    before = fold_of(network, ("1",), "1.bias", 4)
    with torch.no_grad():
        network[1].get_parameter("bias").add_(moved)
    after = fold_of(network, ("1",), "1.bias", 4)
    assert before.scale.equal(after.scale)
    assert before.shift.equal(after.shift)  # bit for bit: else an edit would be refused


def test_the_map_is_the_norm() -> None:
    network = _network(0, torch.float64)
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    whole = fold_of(network, ("1",), None, 4)
    without = fold_of(network, ("1",), "1.bias", 4)
    expected = network[1](x)
    axes = (None, slice(None), None, None)
    torch.testing.assert_close(x * whole.scale[axes] + whole.shift[axes], expected)
    bias = network[1].get_parameter("bias").detach()
    torch.testing.assert_close(x * without.scale[axes] + (without.shift + bias)[axes], expected)
