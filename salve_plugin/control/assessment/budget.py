"""What an edit spends: rank, norm and number of changed weights, and the bytes that travel."""

from collections.abc import Mapping

import torch
from torch import Tensor

from salve_plugin.control.assessment.outcomes import Budget, ParameterBudget
from salve_plugin.control.edit import Edit


def budget_of(edit: Edit, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Budget:
    """Return the budget of an edit.

    Args:
        edit: the edit.
        before: the touched parameters without it, by path.
        after: the same with it.
    """
    sizes = [tensor.numel() * tensor.element_size() for tensor in edit.tensors.values()]
    return Budget(
        sum(sizes),
        tuple(parameter_budget(path, before[path], after[path]) for path in sorted(before)),
    )


def parameter_budget(path: str, before: Tensor, after: Tensor) -> ParameterBudget:
    """Return what is changed in one parameter."""
    old, new = (_matrix(tensor) for tensor in (before, after))
    change = new - old
    norm, scale = float(change.norm()), float(old.norm())
    return ParameterBudget(
        changed=int((before != after).sum()),
        norm=norm,
        path=path,
        rank=rank_of(change, float(new.norm()), after.dtype),
        relative=norm / scale if scale else None,
    )


def rank_of(change: Tensor, size: float, dtype: torch.dtype) -> int:
    """Return the rank of a change (rows, columns), as far as the parameter's type can tell.

    Writing W' in its type errs by E with |E_ij| <= eps |W'_ij|, and no singular value of a matrix
    moves by more than |E|_F (Weyl): what is below eps |W'|_F may be rounding alone.

    Args:
        change: W' - W, float64.
        size: Frobenius norm of W'.
        dtype: of the parameter.
    """
    rows, columns = change.ne(0).any(1), change.ne(0).any(0)
    core = change[rows][:, columns]  # of one row of a thousand the rest need not be decomposed
    if not core.numel():
        return 0
    values = torch.linalg.svdvals(core)
    return int((values > torch.finfo(dtype).eps * size).sum())


def _matrix(tensor: Tensor) -> Tensor:
    """Return a weight or bias as a matrix with one row an output, float64."""
    return tensor.detach().cpu().double().reshape(len(tensor), -1)
