"""What a step makes of the gradients before the optimizer sees them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Start, Step, Tensors
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training.loop import State, train
from salve_plugin.discover.training.plan import Plan

PLAN = Plan(steps=1, seed=0, epoch=40, batch_size=40)


class Watched(torch.optim.SGD):
    """Plain gradient descent that keeps what it was given."""

    given: list[Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # nobody gives a closure
        self.given = [p.grad.clone() for p in self.param_groups[0]["params"]]
        super().step(closure)


def one_step(size: float) -> tuple[Tensors, dict[str, Tensor], dict[str, Tensor]]:
    """Return tensors before a step on rows of a size, the loss's gradients, and those used."""
    random = torch.Generator().manual_seed(0)
    x = size * torch.randn(40, 5, generator=random)
    atoms = functional.normalize(torch.randn(7, 5, generator=random), dim=1)
    state = State.fresh(L1().prepare(Start(x, atoms, 0.3, random)), PLAN, 0.01)
    watched = state.optimizer = Watched(state.trained, lr=0.01)
    before = {
        name: value.detach().clone().requires_grad_() for name, value in state.tensors.items()
    }
    loss = L1().loss(before, Step(x, torch.zeros(7, dtype=torch.bool))).loss
    raw = dict(zip(before, torch.autograd.grad(loss, list(before.values())), strict=True))

    def batches() -> Iterator[Tensor]:
        yield x

    assert [done.step for done in train(L1(), state, batches(), PLAN, team=Team())] == [1]
    return before, raw, dict(zip(before, watched.given, strict=True))


def total(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([each.square().sum() for each in gradients.values()]).sum().sqrt())


@pytest.mark.parametrize("size", [0.05, 10.0])
def test_gradients_of_atoms_are_projected_and_the_norm_of_all_is_clipped_at_one(
    size: float,
) -> None:
    """Small gradients are left as they are; large ones keep their direction."""
    before, raw, used = one_step(size)
    atoms = before["atoms"].detach()
    assert float((raw["atoms"] * atoms).sum(1).abs().max()) > 1e-4
    along = (raw["atoms"] * atoms).sum(1, keepdim=True)
    expected = {**raw, "atoms": raw["atoms"] - along * atoms}
    assert (total(expected) > 1) == (size == 10.0)
    factor = max(1.0, total(expected))
    for name, gradient in expected.items():
        torch.testing.assert_close(used[name], gradient / factor, rtol=1e-4, atol=1e-6)
