"""ITDA: atoms are training rows, they explain the data, and sources compare models."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Learner, Start, Tensors
from salve_plugin.discover.learners.growing import apart
from salve_plugin.discover.learners.itda import Itda, jaccard
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError


def solve(learner: Itda, rows: Tensor, n_latents: int, size: int = 500) -> Tensors:
    """Return the tensors found in one pass over the rows in batches."""
    start = Start(rows[:50], functional.normalize(rows[:n_latents], dim=1), 1.0, torch.Generator())

    def batches() -> Iterator[Tensor]:
        return iter(torch.split(rows, size))

    return learner.solve(start, batches)


@pytest.fixture(scope="module")
def centred(flat: Any) -> Tensor:
    rows: Tensor = flat.rows - flat.rows.mean(0)
    return rows / rows.square().sum(1).mean().sqrt()


def relative_errors(learner: Itda, t: Tensors, rows: Tensor) -> Tensor:
    left = rows - learner.decode(t, learner.encode(t, rows))
    return left.square().sum(1) / rows.square().sum(1)


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.3])
def test_the_rows_are_explained_by_fewer_rows_of_their_own(centred: Tensor, tau: float) -> None:
    learner = Itda(k=6, tau=tau)
    t = solve(learner, centred, len(centred))
    atoms, sources = t["atoms"], t["sources"].long()
    assert 10 < len(atoms) < 0.7 * len(centred)
    torch.testing.assert_close(atoms, functional.normalize(centred[sources], dim=1))
    assert sorted(set(sources.tolist())) == sources.tolist()  # each once, in the order of the pass
    explained = (relative_errors(learner, t, centred) <= tau).double().mean()
    assert float(explained) >= 0.99


def test_a_smaller_tau_needs_more_atoms(centred: Tensor) -> None:
    sizes = [len(solve(Itda(k=4, tau=tau), centred, 3000)["atoms"]) for tau in (0.5, 0.3, 0.1)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def by_definition(rows: Tensor, k: int, tau: float) -> list[int]:
    """Return the sources, chosen row by row with pursuit on residuals in float64."""
    atoms: list[Tensor] = []
    sources: list[int] = []
    start = 0
    while start < len(rows):
        end = min(start + min(256, max(1, len(atoms) // 4)), len(rows))
        known, fresh = list(atoms), list[Tensor]()
        for place in range(start, end):
            row = residual = rows[place].double()
            for _ in range(k if known else 0):
                correlations = torch.stack(known) @ residual
                best = int(correlations.abs().argmax())
                residual = residual - correlations[best] * known[best]
            direction = row / row.norm()
            twin = any(float(direction @ other) ** 2 >= 1 - tau for other in fresh)
            if residual.square().sum() > tau * row.square().sum() and not twin:
                fresh.append(direction)
                sources.append(place)
        atoms += fresh
        start = end
    return sources


def test_the_sources_are_those_of_the_definition(centred: Tensor) -> None:
    rows = centred[:150]
    for k, tau in ((1, 0.3), (4, 0.1)):
        found = solve(Itda(k=k, tau=tau), rows, 150)["sources"]
        assert found.tolist() == by_definition(rows, k, tau)


def test_the_same_pass_gives_the_same_atoms_and_other_batches_similar_ones(
    centred: Tensor,
) -> None:
    rows = centred[:400]
    one, again = solve(Itda(k=3), rows, 400), solve(Itda(k=3), rows, 400)
    assert torch.equal(one["atoms"], again["atoms"])
    assert jaccard(one["sources"], again["sources"]) == 1
    in_parts = solve(Itda(k=3), rows, 400, size=30)
    assert jaccard(one["sources"], in_parts["sources"]) > 0.7


def test_it_stops_at_the_number_of_latents(centred: Tensor) -> None:
    t = solve(Itda(k=4, tau=0.01), centred, 20)
    assert len(t["atoms"]) == len(t["sources"]) == 20
    assert torch.equal(t["atoms"], solve(Itda(k=4, tau=0.01), centred, 3000)["atoms"][:20])


def test_rows_of_one_direction_give_one_atom_and_zero_rows_none() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [0.99, 0.01], [0.0, 3.0]])
    t = solve(Itda(k=1), rows, 2)
    assert t["sources"].tolist() == [1, 4]
    assert apart(functional.normalize(rows[1:], dim=1), 0.1).tolist() == [0, 3]
    with pytest.raises(InputError, match="equals the mean"):
        solve(Itda(k=1), torch.zeros(5, 2), 2)


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    class Given(Itda):
        """Its first tensors are those of a start, as learners with gradients have them."""

        def prepare(self, start: Start) -> Tensors:
            return {**start.tensors(), "sources": torch.arange(start.n_latents).double()}

    check_inference(Given(k=3))


def test_a_fit_keeps_atoms_and_sources(flat: Any) -> None:
    found = fit(flat.rows, "itda", n_latents=400, k=4, tau=0.1)
    assert found.n_latents == len(found.tensors["sources"]) < 400
    directions = functional.normalize(flat.rows - found.decoder_bias, dim=1)
    assert float((found.atoms @ directions.T).max(1).values.min()) > 1 - 1e-5
    assert float(found.meta["held_out_r2"]) > 0.9  # type: ignore[arg-type] # a number
    again = fit(flat.rows, "itda", n_latents=400, k=4, tau=0.1)
    assert again.digest == found.digest
    random = torch.randn(found.atoms.shape, generator=torch.Generator().manual_seed(99))
    by_chance = flat.cosines(functional.normalize(random, dim=1)).mean()
    assert float(flat.cosines(found.atoms).mean()) > 0.8 > float(by_chance) + 0.1


def test_models_that_represent_alike_share_sources(flat: Any) -> None:
    """A rotation changes nothing; other features of the same examples change nearly all."""
    width, random = flat.rows.shape[1], torch.Generator().manual_seed(99)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
    warped = torch.tanh(3 * flat.rows @ torch.randn(width, width, generator=random))

    def sources(rows: Tensor) -> Tensor:
        return fit(rows, "itda", n_latents=2000, k=4, tau=0.2).tensors["sources"]

    own = sources(flat.rows)
    assert jaccard(own, own) == 1
    turned, other = jaccard(own, sources(flat.rows @ rotation)), jaccard(own, sources(warped))
    assert turned > 0.9
    assert other < 0.5


def test_jaccard_counts_shared_sources() -> None:
    assert jaccard([1, 2, 3], torch.tensor([2.0, 3.0, 4.0])) == 0.5
    assert jaccard([1], [2]) == 0
    with pytest.raises(InputError, match="nothing to compare"):
        jaccard([], [])


def test_options_out_of_range_are_refused(centred: Tensor) -> None:
    with pytest.raises(InputError, match="tau must lie between 0 and 1"):
        Itda(tau=1.5)
    with pytest.raises(InputError, match="k = 4"):
        solve(Itda(k=4), centred, 3)
