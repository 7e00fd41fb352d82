"""The tests run with annotations checked, those with shapes and those without."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from salve_plugin.discover.training.rows import held_out
from salve_plugin.integers import whole

NAME: object = 7
ROWS: torch.Tensor = torch.zeros(2, 2, dtype=torch.int64)


def test_what_the_annotations_do_not_say_is_refused() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        whole(1, NAME)  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(TypeCheckError):
        held_out(ROWS)


@pytest.mark.usefixtures("untyped")
def test_as_in_a_program_of_ones_own_nothing_is_checked() -> None:
    assert whole(1, NAME) == 1  # type: ignore[arg-type] # wrong on purpose
    assert held_out(ROWS).shape == ROWS.shape
