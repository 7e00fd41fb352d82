"""Matched cosines against every possible matching, and what chance gives."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.stability import matched_cosines, random_atoms, stability


@given(seed=st.integers(0, 200), n=st.integers(1, 5), signed=st.booleans())
@settings(deadline=None, max_examples=40, derandomize=True)
def test_the_matching_is_the_best_of_all(seed: int, n: int, signed: bool) -> None:
    one, other = random_atoms(n, 3, seed=2 * seed), random_atoms(n, 3, seed=2 * seed + 1)
    cosines = one.double() @ other.double().T
    cosines = cosines if signed else cosines.abs()
    best = max(sum(float(cosines[i, j]) for i, j in enumerate(p)) for p in permutations(range(n)))
    assert float(matched_cosines(one, other, signed=signed).sum()) == pytest.approx(best, abs=1e-6)


def shuffled(atoms: Tensor, seed: int) -> Tensor:
    return atoms[torch.randperm(len(atoms), generator=torch.Generator().manual_seed(seed))]


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_a_shuffled_copy_is_perfectly_stable_and_a_negated_one_only_up_to_sign(seed: int) -> None:
    atoms = random_atoms(20, 8, seed=seed)
    copy = shuffled(atoms, seed) * 3  # atoms need not have unit norm
    signs = torch.where(torch.arange(20) % 2 == 0, 1.0, -1.0)[:, None]
    alike = stability(atoms, [copy], signed=True, seed=seed)
    assert alike.cosine == pytest.approx(1)
    assert alike.same == 1
    alike = stability(atoms, [copy * signs], signed=False, seed=seed)
    assert alike.cosine == pytest.approx(1)
    assert alike.same == 1
    assert stability(atoms, [copy * signs], signed=True, seed=seed).same < 1


def test_several_others_are_averaged_and_random_ones_are_at_the_null() -> None:
    atoms = random_atoms(200, 16, seed=10)
    others = [shuffled(atoms, 1), random_atoms(200, 16, seed=11)]
    both = stability(atoms, others, signed=True)
    alone = [stability(atoms, [other], signed=True) for other in others]
    assert both.cosine == pytest.approx((alone[0].cosine + alone[1].cosine) / 2)
    assert both.same == pytest.approx((alone[0].same + alone[1].same) / 2)
    assert alone[1].cosine == pytest.approx(both.null_cosine, abs=0.02)
    assert (alone[1].same, both.null_same) == (0, 0)
    assert 0.3 < both.null_cosine < 0.8  # far from zero: chance matches many atoms in 16 dimensions


def test_atoms_that_cannot_be_matched_are_refused() -> None:
    atoms = random_atoms(4, 3, seed=0)
    with pytest.raises(InputError, match=r"shape \(4, 3\) and \(5, 3\) cannot be matched"):
        stability(atoms, [random_atoms(5, 3, seed=0)], signed=True)
    with pytest.raises(InputError, match="at least one dictionary of another seed"):
        stability(atoms, [], signed=True)
    for value, complaint in ((float("nan"), "atoms hold 1 NaN"), (0.0, "atom 2 is zero")):
        broken = atoms.clone()
        broken[2] = torch.tensor([value, 0.0, 0.0])
        with pytest.raises(InputError, match=complaint):
            matched_cosines(atoms, broken, signed=True)
