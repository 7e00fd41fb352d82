"""Tensors that consist of others: named by their parts, and never taken for plain memory."""

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from salve_plugin.composed import is_composed, plain
from salve_plugin.control.rows import same_bits
from salve_plugin.control.slots import slots_of
from salve_plugin.errors import UnsupportedModelError
from salve_plugin.store.digest import state_digest


def composed(second: float) -> TwoTensor:
    return TwoTensor(torch.ones(2, 3), torch.full((2, 3), second))


def network(second: float) -> nn.Module:
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    model["head"].weight = nn.Parameter(composed(second))
    return model


def test_parts_are_named_after_the_whole() -> None:
    nested = TwoTensor(composed(2.0), composed(3.0))
    parts = plain({"w": nested, "n": 3, "b": torch.ones(1)})
    assert list(parts) == ["w.a.a", "w.a.b", "w.b.a", "w.b.b", "n", "b"]
    assert [float(parts[name].sum()) for name in list(parts)[:4]] == [6.0, 12.0, 6.0, 18.0]
    assert not any(isinstance(each, torch.Tensor) and is_composed(each) for each in parts.values())


def test_every_part_counts_for_the_digest_of_a_model() -> None:
    assert state_digest(network(2.0)) == state_digest(network(2.0))
    assert state_digest(network(2.0)) != state_digest(network(3.0))
    with pytest.raises(UnsupportedModelError, match=r"head\.weight"):
        state_digest(network(2.0).state_dict())  # what a file holds has no such tensors


def test_what_has_no_memory_of_its_own_is_neither_compared_nor_edited() -> None:
    whole = composed(2.0)
    for pair in ((whole, torch.ones(2, 3)), (torch.ones(2, 3), whole), (whole, whole)):
        with pytest.raises(UnsupportedModelError, match="dequantize"):
            same_bits(*pair)
    assert same_bits(torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(UnsupportedModelError, match=r"'head\.weight' is an instance of TwoTensor"):
        slots_of(network(2.0), ["head.weight"])
