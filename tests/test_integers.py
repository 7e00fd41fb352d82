"""What counts as an integer."""

from typing import Any

import numpy as np
import pytest
import torch

from salve_plugin.errors import InputError
from salve_plugin.integers import whole


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).int()]
)
def test_an_integer_is_one_wherever_it_is_from(value: Any) -> None:
    assert whole(value, "label") == 3
    assert type(whole(value, "label")) is int


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), 3.0, np.float64(3), "3", None, [3], np.array([3]), torch.ones(1)],
)
def test_nothing_else_is(value: Any) -> None:
    with pytest.raises(InputError, match=r"^label is .*; expected an integer"):
        whole(value, "label")


def test_one_that_is_too_small_is_none() -> None:
    assert [whole(value, "top", least=1) for value in (1, np.int64(2))] == [1, 2]
    with pytest.raises(InputError, match=r"^top is 0; at least 1 was expected$"):
        whole(0, "top", least=1)
