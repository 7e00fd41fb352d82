"""Matryoshka: nested losses against brute force, BatchTopK as special case, general ones first."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.learners.base import Learner, Step, Tensors
from salve_plugin.discover.learners.batch_topk import BatchTopK
from salve_plugin.discover.learners.matryoshka import Matryoshka, blocks
from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from tests.discover.learners.conftest import Planted

HalfTrained = Callable[..., tuple[Tensors, Step]]


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(Matryoshka(k=3, groups=(0.25, 0.25)))


def test_the_last_group_takes_what_the_others_leave_over() -> None:
    assert Matryoshka().sizes(1024) == [32, 64, 128, 256, 544]
    assert Matryoshka(groups=(0.3,)).sizes(10) == [3, 7]
    assert Matryoshka(groups=()).sizes(10) == [10]


def test_without_groups_it_is_batch_topk_to_the_bit(half_trained: HalfTrained) -> None:
    one, other = Matryoshka(k=3, groups=()), BatchTopK(k=3)
    t, step = half_trained(one)
    step = replace(step, dead=torch.arange(12) < 3)
    a, b = one.loss(t, step), other.loss(t, step)
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(a.active, b.active)
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    for mine, theirs in zip(
        torch.autograd.grad(a.loss, trained), torch.autograd.grad(b.loss, trained), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_the_loss_is_the_mean_over_prefixes_and_so_are_its_gradients(
    half_trained: HalfTrained,
) -> None:
    learner = Matryoshka(k=3, groups=(0.25, 0.25))
    t, step = half_trained(learner)
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    outcome = learner.loss(t, step)
    pre = learner.pre_activation(t, step.x)
    smallest = pre.detach().flatten().sort(descending=True).values[3 * len(step.x) - 1]
    code = pre * (pre >= smallest)
    losses = [
        (step.x - code[:, :end] @ t["atoms"][:end] - t["decoder_bias"]).square().sum(1).mean()
        for end in (3, 6, 12)
    ]
    formula = (losses[0] + losses[1] + losses[2]) / 3
    torch.testing.assert_close(outcome.loss, formula)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(formula, trained)
    )


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    rows=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 999),
)
def test_blocks_are_the_columns_of_the_code(
    rows: int, sizes: list[int], density: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, sum(sizes), generator=random)
    mask = torch.rand(dense.shape, generator=random) < density
    parts = []
    for block in blocks(Code(dense[mask], Support.of_mask(mask)), sizes):
        assert block.support is not None
        parts.append(block.support.dense(block.values))
    assert [part.shape[1] for part in parts] == sizes
    assert torch.equal(torch.cat(parts, 1), dense * mask)


@pytest.mark.slow
def test_parents_come_first_and_longer_prefixes_reconstruct_better(
    train: Callable[..., Dictionary], hierarchical: "Planted"
) -> None:
    """A child is never without its parent, so that four latents alone do best as the parents."""
    found = train(Matryoshka(k=2, groups=(0.2, 0.3)), hierarchical.rows, n_latents=20)
    parents = hierarchical.truth[:4]
    nearest = (parents @ found.atoms.T).max(1)
    assert nearest.indices.max() < 4
    assert nearest.values.min() > 0.85
    code = found.encode(hierarchical.rows)
    left = [
        float((hierarchical.rows - found.decode(code * (torch.arange(20) < end))).square().mean())
        for end in (4, 10, 20)
    ]
    assert left == sorted(left, reverse=True)


def test_groups_survive_a_file(
    train: Callable[..., Dictionary], flat: "Planted", tmp_path: Path
) -> None:
    """JSON knows no tuples."""
    learner = Matryoshka(k=2, groups=(0.25,))
    assert Matryoshka(**json.loads(json.dumps(asdict(learner)))) == learner
    found = train(learner, flat.rows, steps=5)
    found.save_pretrained(tmp_path)
    again = Dictionary.from_pretrained(tmp_path)
    assert (
        again.options == found.options == {"k": 2, "aux": 1 / 32, "k_aux": None, "groups": [0.25]}
    )
    assert again.digest == found.digest


@pytest.mark.parametrize(
    ("groups", "message"),
    [([0.5, 0.5], "add up to 1 and leave no latents"), ([0.0], "above 0"), ([0.7, 0.7], "1.4")],
)
def test_groups_that_leave_nothing_or_are_empty_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Matryoshka(groups=groups)


def test_a_group_without_latents_is_refused() -> None:
    with pytest.raises(InputError, match=r"have sizes \[0, 1, 1, 2, 6\]"):
        Matryoshka().sizes(10)
