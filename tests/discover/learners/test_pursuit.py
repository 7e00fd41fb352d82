"""Pursuit on correlations against pursuit on rows, step by step and in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.pursuit import (
    gram_matrix,
    gram_rows,
    pursue,
    pursuit_code,
    solved,
)


def problem(rows: int, latents: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows and unit atoms."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=random, dtype=torch.float64)
    atoms = torch.randn(latents, width, generator=random, dtype=torch.float64)
    return x, functional.normalize(atoms, dim=1)


def by_residuals(x: Tensor, atoms: Tensor, k: int, signed: bool) -> tuple[Tensor, list[Tensor]]:
    """Return the code of one row, and its residual after each step, as the method is published."""
    code, residual = torch.zeros(len(atoms), dtype=x.dtype), x
    residuals = [x]
    for _ in range(k):
        correlation = atoms @ residual
        best = (correlation.abs() if signed else correlation).argmax()
        if not signed and correlation[best] <= 0:
            break
        code[best] += correlation[best]
        residual = residual - correlation[best] * atoms[best]
        residuals.append(residual)
    return code, residuals


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    latents=st.integers(1, 12),
    width=st.integers(1, 6),
    k=st.integers(1, 8),
    signed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_code_is_that_of_pursuit_on_the_rows(
    latents: int, width: int, k: int, signed: bool, seed: int
) -> None:
    x, atoms = problem(5, latents, width, seed)
    code = pursuit_code(x @ atoms.T, atoms, k, signed=signed)
    for row, found in zip(x, code, strict=True):
        torch.testing.assert_close(found, by_residuals(row, atoms, k, signed)[0])
    assert signed or bool((code >= 0).all())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(signed=st.booleans(), k=st.integers(1, 9), seed=st.integers(0, 999))
def test_each_step_lowers_the_squared_residual_by_what_it_takes_and_leaves_its_atom(
    signed: bool, k: int, seed: int
) -> None:
    x, atoms = problem(4, 7, 5, seed)
    found = pursue(x @ atoms.T, gram_rows(atoms, 99), k, signed=signed)
    residual = x
    for step in range(k):
        atom, taken = atoms[found.latents[:, step]], found.values[:, step]
        after = residual - taken[:, None] * atom
        torch.testing.assert_close(after.square().sum(1), residual.square().sum(1) - taken.square())
        on = found.on[:, step]
        torch.testing.assert_close((after * atom).sum(1)[on], torch.zeros_like(taken[on]))
        residual = after


def test_a_row_stops_where_no_correlation_is_positive() -> None:
    atoms = torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[-1.0, -2.0], [3.0, -2.0]], dtype=torch.float64)
    found = pursue(x @ atoms.T, gram_rows(atoms, 99), 3, signed=False)
    assert found.values.tolist() == [[0, 0, 0], [3, 0, 0]]
    assert pursuit_code(x, atoms, 3, signed=False).tolist() == [[0, 0], [3, 0]]
    assert pursuit_code(x, atoms, 2, signed=True).tolist() == x.tolist()


def test_an_atom_can_be_taken_again_and_its_code_adds_up() -> None:
    angle = torch.tensor(0.3, dtype=torch.float64)
    atoms = torch.tensor([[1.0, 0.0], [float(angle.cos()), float(angle.sin())]]).double()
    x = torch.tensor([[0.9, 0.45]], dtype=torch.float64)
    found = pursue(x @ atoms.T, gram_rows(atoms, 99), 6, signed=True)
    assert len(set(found.latents[0].tolist())) == 2
    code = found.dense(found.values, 2)[0]
    for atom in (0, 1):
        assert code[atom] == found.values[0][found.latents[0] == atom].sum()


def test_the_triangular_system_gives_what_the_steps_took() -> None:
    x, atoms = problem(30, 20, 8, 0)
    pre = x @ atoms.T
    found = pursue(pre, gram_rows(atoms, 999), 6, signed=False)
    values = solved(pre.gather(1, found.latents), found.triangle, found.on)
    torch.testing.assert_close(values, found.values)


def test_the_gram_matrix_is_whole_in_as_many_blocks_as_it_takes() -> None:
    for latents in (1, 256, 257, 700):
        _, atoms = problem(1, latents, 5, 4)
        torch.testing.assert_close(gram_matrix(atoms), atoms @ atoms.T)


def test_rows_of_the_gram_matrix_are_the_same_whether_it_is_kept_or_not() -> None:
    _, atoms = problem(1, 20, 8, 0)
    some = torch.tensor([3, 3, 19])
    torch.testing.assert_close(gram_rows(atoms, 20)(some), gram_rows(atoms, 19)(some))
    torch.testing.assert_close(gram_rows(atoms, 20)(some), (atoms @ atoms.T)[some])


def test_the_gradient_of_the_code_is_that_of_finite_differences() -> None:
    x, atoms = problem(4, 9, 5, 3)
    for signed in (True, False):

        def code(rows: Tensor, signed: bool = signed) -> Tensor:
            return pursuit_code(rows @ atoms.T, atoms, 4, signed=signed)

        assert torch.autograd.gradcheck(code, x.clone().requires_grad_(), eps=1e-7)


def test_orthonormal_atoms_give_the_k_largest_coefficients() -> None:
    x, _ = problem(6, 1, 5, 1)
    axes = torch.linalg.qr(problem(5, 1, 5, 2)[0]).Q
    code = pursuit_code(x @ axes.T, axes, 2, signed=True)
    exact = x @ axes.T
    kept = torch.zeros_like(exact).scatter(1, exact.abs().topk(2).indices, 1.0)
    torch.testing.assert_close(code, exact * kept)
