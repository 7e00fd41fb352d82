"""Where training starts: initial atoms, spherical k-means, the calibrated encoder."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners import create
from salve_plugin.discover.training.rows import Moments, RowReader
from salve_plugin.discover.training.start import spherical_kmeans, start_of
from salve_plugin.errors import InputError


def bundles(n: int, each: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows near n directions, shuffled, and the directions."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.linalg.qr(torch.randn(width, n, generator=random)).Q.T
    rows = truth.repeat_interleave(each, 0) + 0.02 * torch.randn(n * each, width, generator=random)
    sizes = 0.5 + torch.rand(n * each, 1, generator=random)
    return (sizes * rows)[torch.randperm(n * each, generator=random)], truth


def test_kmeans_finds_bundles_of_directions_whatever_the_rows_lengths() -> None:
    """It starts from the first rows, here one of each bundle: others may stay in one bundle."""
    rows, truth = bundles(4, 50, 10)
    first = [(rows @ truth.T).argmax(1).eq(bundle).nonzero()[0, 0] for bundle in range(4)]
    rows = torch.cat([rows[torch.stack(first)], rows])
    centres = spherical_kmeans(rows, 4, iterations=20)
    starts = functional.normalize(rows[:4], dim=1)
    assert (truth @ centres.T).max(1).values.min() > 0.999 > (truth @ starts.T).max(1).values.min()


def _cohesion(rows: Tensor, centres: Tensor) -> float:
    return float((functional.normalize(rows, dim=1) @ centres.T).max(1).values.mean())


@given(seed=st.integers(0, 1000), n=st.integers(1, 12))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_every_iteration_of_kmeans_brings_rows_closer_to_their_centres(seed: int, n: int) -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))
    centres = [spherical_kmeans(rows, n, iterations) for iterations in (1, 2, 4, 8)]
    values = [_cohesion(rows, found) for found in centres]
    for before, after in pairwise(values):
        assert after >= before - 1e-6
    torch.testing.assert_close(centres[-1].norm(dim=1), torch.ones(n))


def test_kmeans_without_enough_rows_is_refused_and_equal_rows_do_not_break_it() -> None:
    with pytest.raises(InputError, match="3 rows are too few for 4 centres"):
        spherical_kmeans(torch.randn(3, 2), 4)
    assert spherical_kmeans(torch.ones(9, 2), 3).isfinite().all()


@pytest.mark.parametrize("initialization", ["rows", "kmeans", "random"])
def test_atoms_start_at_unit_norm_and_the_encoder_as_their_best_multiple(
    initialization: str,
) -> None:
    """No other multiple of the encoder reconstructs the calibration rows better."""
    rows, _ = bundles(5, 60, 8)
    data = RowReader(rows, None)
    for name in ("l1", "relu_l1", "topk", "abs_topk"):
        rule = create(name, {"k": 2} if "topk" in name else {})
        start = start_of(data, Moments.of(data), rule, 5, initialization=initialization)
        torch.testing.assert_close(start.atoms.norm(dim=1), torch.ones(5))
        x = start.rows[:1024]
        code = rule.initial_code(x @ start.atoms.T)

        def error(
            gain: float, x: Tensor = x, code: Tensor = code, v: Tensor = start.atoms
        ) -> float:
            return float((x - gain * code @ v).square().sum())

        assert error(start.gain) <= min(error(0.97 * start.gain), error(1.03 * start.gain))


def test_kmeans_atoms_do_not_depend_on_the_seed_and_others_do() -> None:
    data = RowReader(bundles(5, 60, 8)[0], None)
    moments, rule = Moments.of(data), create("l1", {})

    def atoms(initialization: str, seed: int) -> Tensor:
        return start_of(data, moments, rule, 5, initialization=initialization, seed=seed).atoms

    assert torch.equal(atoms("kmeans", 0), atoms("kmeans", 1))
    for initialization in ("rows", "random"):
        assert torch.equal(atoms(initialization, 0), atoms(initialization, 0))
        assert not torch.equal(atoms(initialization, 0), atoms(initialization, 1))


@pytest.mark.parametrize("initialization", ["rows", "kmeans", "random"])
def test_few_different_rows_give_different_atoms_the_same_each_time(initialization: str) -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).repeat(40, 1)
    data = RowReader(rows, None)
    one, again = (
        start_of(data, Moments.of(data), create("topk", {"k": 2}), 9, initialization=initialization)
        for _ in range(2)
    )
    assert torch.equal(one.atoms, again.atoms)
    torch.testing.assert_close(one.atoms.norm(dim=1), torch.ones(9))
    assert len({tuple(atom.tolist()) for atom in one.atoms}) == 9


def test_different_centres_of_kmeans_are_left_where_they_are() -> None:
    rows, _ = bundles(5, 60, 8)
    data, rule = RowReader(rows, None), create("l1", {})
    moments = Moments.of(data)
    start = start_of(data, moments, rule, 5, initialization="kmeans")
    assert torch.equal(start.atoms, functional.normalize(spherical_kmeans(start.rows, 5), dim=1))


def test_an_unknown_initialization_is_refused() -> None:
    data = RowReader(torch.randn(20, 3), None)
    with pytest.raises(InputError, match="no initialization 'svd'; choose one of"):
        start_of(data, Moments.of(data), create("l1", {}), 2, initialization="svd")
