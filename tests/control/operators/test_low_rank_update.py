"""The low-rank update against W + A Bᵀ written out, and LoRA's own convention."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.control.operators import Fold, LowRankUpdate, operator_fields, operator_of
from salve_plugin.errors import InputError


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 1)])
def test_a_weight_becomes_itself_plus_the_product(shape: tuple[int, ...]) -> None:
    weight = draw(0, *shape)
    update = LowRankUpdate(draw(1, 4, 2), draw(2, 6, 2), draw(3, 4))
    for part in (
        update.reader_weight(weight),
        update.writer_weight(weight, Fold.none(4)),
    ):
        added = part.added_at(slice(0, 4))
        assert added is not None
        expected = (update.left @ update.right.T).reshape(shape)
        torch.testing.assert_close(added, expected, rtol=1e-14, atol=1e-14)
        rows = part.added_at(torch.tensor([3, 1]))
        assert rows is not None
        assert torch.equal(rows, added[[3, 1]])
    bias = update.reader_bias(weight).added_at(slice(0, 4))
    assert bias is not None
    assert torch.equal(bias, update.shift)  # type: ignore[arg-type] # given above


def test_rank_zero_moves_the_bias_alone() -> None:
    mask = LowRankUpdate(torch.zeros(1, 0), torch.zeros(6, 0), torch.tensor([-50.0]))
    weight = draw(0, 1, 6)
    assert mask.reader_weight(weight).added_at(slice(0, 1)) is None
    assert mask.rank == 0
    added = mask.reader_bias(weight).added_at(slice(0, 1))
    assert added is not None
    assert added.tolist() == [-50.0]


def test_it_is_a_lora() -> None:
    lora_a, lora_b, scaling = draw(0, 2, 6), draw(1, 4, 2), 1.5
    update = LowRankUpdate(scaling * lora_b, lora_a.T)
    weight, x = draw(2, 4, 6), draw(3, 5, 6)
    added = update.reader_weight(weight).added_at(slice(0, 4))
    assert added is not None
    expected = functional.linear(x, weight) + scaling * (x @ lora_a.T) @ lora_b.T
    torch.testing.assert_close(functional.linear(x, weight + added), expected)


def test_it_comes_back_with_and_without_a_shift() -> None:
    for shift in (None, draw(2, 4)):
        update = LowRankUpdate(draw(0, 4, 2), draw(1, 6, 2), shift)
        again = operator_of(operator_fields(update), update.tensors)
        assert again.tensors.keys() == update.tensors.keys()
        assert all(torch.equal(again.tensors[n], t) for n, t in update.tensors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": torch.ones(6, 3)}, "do not fit"),
        ({"shift": torch.ones(3)}, "do not fit"),
        ({"left": torch.ones(4)}, "2 axes"),
        ({"left": torch.full((4, 2), torch.inf)}, "infinite"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {"left": torch.ones(4, 2), "right": torch.ones(6, 2), "shift": None}
    with pytest.raises(InputError, match=message):
        LowRankUpdate(**{**parts, **change})


def test_it_is_compared_with_the_layer_and_is_no_map_of_a_site() -> None:
    update = LowRankUpdate(torch.ones(4, 2), torch.ones(6, 2))
    with pytest.raises(InputError, match="6 rows for 5 inputs"):
        update.reader_weight(torch.ones(4, 5))
    with pytest.raises(InputError, match="one layer"):
        update.check(6, None, (4, 4))
    with pytest.raises(InputError, match="4 rows for 2 outputs"):
        update.check(6, 2, (4,))
    with pytest.raises(InputError, match="not a site"):
        update.activation(torch.ones(1, 6), 1)


@pytest.mark.parametrize(
    ("fields", "tensors"),
    [
        ({"form": "scale"}, {}),
        ({"form": "low_rank_update", "more": 1}, {}),
        ({"form": "low_rank_map", "scale": True}, {"write": 1, "read": 1, "offset": 1}),
        ({"form": "gate", "mode": "suppress", "strength": "1"}, {"directions": 1}),
        ({"form": "gate", "mode": "suppress"}, {"directions": 1}),
        ([], {}),
    ],
)
def test_the_vocabulary_of_files_is_closed(fields: Any, tensors: dict[str, Any]) -> None:
    whole = {name: torch.eye(2) for name in tensors}
    with pytest.raises(InputError):
        operator_of(fields, whole)
