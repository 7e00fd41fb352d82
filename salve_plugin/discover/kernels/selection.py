"""Which numbers of a matrix are the largest: as torch finds them, several times faster."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MEMBERS = 4
"""Columns of a group; only its largest goes on to the next round."""


def largest(
    rows: Float[Tensor, "rows columns"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return the k largest values of each row and their columns, in no particular order.

    The same as `torch.topk(rows, k, sorted=False)` up to ties. It is a tournament: the k groups of
    columns with the largest maxima hold the k largest values, and those groups are found in the
    same way among the maxima.

    >>> import torch
    >>> values, columns = largest(torch.tensor([[5.0, 1.0, 7.0, 3.0]]), 2)
    >>> sorted(values[0].tolist()), sorted(columns[0].tolist())
    ([5.0, 7.0], [0, 2])
    """
    n = rows.shape[1]
    groups = n // MEMBERS
    # With as many groups to keep as there are, a round would throw nothing out.
    if n % MEMBERS or groups <= k:
        columns = _columns_of_largest(rows, k)
        return rows.gather(1, columns), columns
    # A group is the columns g, g + groups, g + 2 groups, ...: the maxima of all groups are then
    # maxima of long rows, element by element, which vectorizes. Groups of neighbours would be
    # reduced four numbers at a time.
    best = largest(rows.view(len(rows), MEMBERS, groups).amax(1), k)[1]
    members = torch.arange(0, n, groups, device=rows.device)[:, None]
    candidates = (best[:, None] + members).flatten(1)
    values = rows.gather(1, candidates)
    winners = _columns_of_largest(values, k)
    return values.gather(1, winners), candidates.gather(1, winners)


def _columns_of_largest(rows: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest of a few columns."""
    n = rows.shape[1]
    if rows.device.type != "cpu" or k == n:
        return rows.topk(k, dim=1, sorted=False).indices
    # NumPy partitions with vector instructions, torch does not. It knows no bfloat16, whose values
    # float32 holds exactly and in the same order.
    wide = rows.float() if rows.element_size() < 4 else rows
    # NaN is the largest number for this, for topk and for amax alike: a row that has one keeps it,
    # and the loss shows it.
    columns = np.argpartition(wide.numpy(), n - k, axis=1)[:, n - k :]
    return torch.from_numpy(columns)


def greater(
    rows: Float[Tensor, "rows columns"], bound: float | Float[Tensor, " columns"]
) -> Bool[Tensor, "rows columns"]:
    """Return where the values are greater than the bound of all columns, or of each."""
    if rows.device.type != "cpu":
        return rows > bound
    # Neither the arrays nor the tensor of the result are copies: they share memory.
    other = bound if isinstance(bound, float) else bound.numpy()
    return torch.from_numpy(np.greater(rows.numpy(), other))


def true_places(mask: Bool[Tensor, "rows columns"]) -> Int[Tensor, " places"]:
    """Return where the flattened mask is true, in order."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
