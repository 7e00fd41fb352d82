"""SNMF: the error never rises, codes are not negative, coding is non-negative least squares."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Learner, Start
from salve_plugin.discover.learners.snmf import Snmf, factorized, non_negative
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError


def problem(latents: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of width 10, a first code and unit atoms, in float64."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(60, 10, generator=random, dtype=torch.float64)
    code = torch.rand(60, latents, generator=random, dtype=torch.float64)
    atoms = torch.randn(latents, 10, generator=random, dtype=torch.float64)
    return rows, code, functional.normalize(atoms, dim=1)


@pytest.mark.parametrize("latents", [3, 8, 15])
def test_no_update_raises_the_error_or_makes_a_code_negative(latents: int) -> None:
    rows, code, fallback = problem(latents)
    errors = []
    for _ in range(100):
        code, atoms = factorized(rows, code, fallback)
        assert bool((code >= 0).all())
        torch.testing.assert_close(atoms.norm(dim=1), torch.ones(latents).double())
        errors.append(float((rows - code @ atoms).square().sum()))
    for before, after in pairwise(errors):
        assert after <= before * (1 + 1e-6)
    assert errors[-1] < 0.9 * errors[0]


def test_an_update_is_its_formula_entry_by_entry() -> None:
    rows, code, fallback = problem(4)
    updated, atoms = factorized(rows, code, fallback)
    g, x = code.numpy(), rows.numpy()
    f = np.linalg.inv(g.T @ g + 1e-6 * np.eye(4)) @ g.T @ x
    norms = np.linalg.norm(f, axis=1)
    f, g = f / norms[:, None], g * norms
    np.testing.assert_allclose(atoms.numpy(), f, rtol=1e-8)
    for row in range(3):
        for latent in range(4):
            p, q = x[row] @ f[latent], f @ f[latent]
            above = max(p, 0) + sum(g[row] * np.maximum(-q, 0))
            below = max(-p, 0) + sum(g[row] * np.maximum(q, 0))
            expected = g[row, latent] * np.sqrt(above / below)
            assert float(updated[row, latent]) == pytest.approx(expected)


def test_only_the_largest_share_of_an_atom_is_kept() -> None:
    rows, code, fallback = problem(4)
    _, atoms = factorized(rows, code, fallback, rho=0.3)
    assert (atoms != 0).sum(1).tolist() == [3] * 4  # of width 10
    _, dense = factorized(rows, code, fallback)
    for some, every in zip(atoms, dense, strict=True):
        assert set(some.nonzero().flatten().tolist()) == set(every.abs().topk(3).indices.tolist())


def test_a_latent_that_nothing_uses_keeps_a_unit_atom() -> None:
    rows, code, fallback = problem(4)
    code[:, 2] = 0
    updated, atoms = factorized(rows, code, fallback)
    assert torch.equal(atoms[2], fallback[2])
    assert not bool(updated[:, 2].any())
    assert bool(updated.isfinite().all())


@pytest.mark.parametrize("latents", [3, 8, 15])
def test_coding_is_non_negative_least_squares(latents: int) -> None:
    from scipy.optimize import nnls

    rows, _, atoms = problem(latents)
    code = non_negative(rows @ atoms.T, atoms @ atoms.T, 1000)
    for row, found in zip(rows, code, strict=True):
        exact, left = nnls(atoms.T.numpy(), row.numpy())
        assert float((row - found @ atoms).norm()) == pytest.approx(left, rel=1e-4, abs=1e-4)
        if latents <= 10:  # else it is not unique
            np.testing.assert_allclose(found.numpy(), exact, atol=1e-3)
    few = non_negative(rows @ atoms.T, atoms @ atoms.T, 100)
    errors = [(rows - z @ atoms).square().sum() for z in (few, code)]
    assert float(errors[0]) < float(errors[1]) + 0.05 * float(rows.square().sum())


def test_the_code_of_a_multiple_is_the_multiple_of_the_code_and_it_has_a_gradient() -> None:
    rows, _, atoms = problem(8)
    gram = atoms @ atoms.T
    code = non_negative(rows @ atoms.T, gram, 50)
    torch.testing.assert_close(non_negative(7 * rows @ atoms.T, gram, 50), 7 * code)
    assert torch.autograd.gradcheck(
        lambda x: non_negative(x @ atoms.T, gram, 20), rows[:3].clone().requires_grad_()
    )


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(Snmf())


def test_a_fit_finds_planted_atoms_and_codes_that_are_not_negative(flat: Any) -> None:
    found = fit(flat.rows, "snmf", n_latents=32, iterations=100)
    assert bool((found.encode(flat.rows) >= 0).all())
    assert float(flat.cosines(found.atoms).mean()) > 0.85
    assert float(found.meta["held_out_r2"]) > 0.95  # type: ignore[arg-type] # a number
    again = fit(flat.rows, "snmf", n_latents=32, iterations=100)
    assert again.digest == found.digest


def test_updates_gain_on_k_means_and_stay_below_principal_axes(flat: Any) -> None:
    """Eight atoms that can only be added explain less than the eight that can be subtracted."""
    found = fit(flat.rows, "snmf", n_latents=8, iterations=100)
    rows = flat.rows - flat.rows.mean(0)
    values = torch.linalg.svdvals(rows).square()
    axes = float(values[:8].sum() / values.sum())
    centres = fit(flat.rows, "snmf", n_latents=8, iterations=1)
    r2 = float(found.meta["train_r2"])  # type: ignore[arg-type] # a number
    assert float(centres.meta["train_r2"]) < r2 < axes + 0.001  # type: ignore[arg-type] # a number


def test_options_out_of_range_are_refused() -> None:
    for options in ({"iterations": 0}, {"updates": 0}, {"rho": 1.5}):
        with pytest.raises(InputError, match=next(iter(options))):
            Snmf(**options)


def test_it_takes_at_most_twenty_thousand_rows() -> None:
    rows = torch.randn(20_050, 2, generator=torch.Generator().manual_seed(0))
    start = Start(rows[:10], torch.eye(2), 1.0, torch.Generator())

    def solve(part: Tensor) -> Tensor:
        parts = torch.split(part, 1024)
        return Snmf(iterations=2).solve(start, lambda: iter(parts))["atoms"]

    assert torch.equal(solve(rows), solve(rows[:20_000]))
    assert not torch.equal(solve(rows), solve(rows[:19_990]))
