"""Memory that is lent for a step."""

import torch

from salve_plugin.discover.kernels.scratch import Scratch


def test_matrices_of_one_step_are_apart_and_the_next_step_gets_the_same_memory() -> None:
    scratch, like = Scratch(), torch.zeros(1)
    one, other = scratch.take(3, 4, like), scratch.take(2, 5, like)
    one.fill_(1)
    other.fill_(2)
    assert one.shape == (3, 4)
    assert bool((one == 1).all())
    scratch.restart()
    again = scratch.take(2, 3, like)
    assert again.data_ptr() == one.data_ptr()
    assert again.shape == (2, 3)
    assert scratch.take(2, 5, like).data_ptr() == other.data_ptr()


def test_it_grows_and_follows_the_number_type() -> None:
    scratch, like = Scratch(), torch.zeros(1, dtype=torch.float64)
    assert scratch.take(1, 2, like).dtype == torch.float64
    scratch.restart()
    assert scratch.take(30, 20, like).shape == (30, 20)
    scratch.restart()
    assert scratch.take(1, 2, like, torch.bfloat16).dtype == torch.bfloat16
