"""Products of matrices whose every bit is the same on every machine and for any number of threads.

An edited weight is compared bit for bit with what its formula gives, perhaps years later and on
another processor. A BLAS product does not allow that: the order in which it sums depends on the
processor, the number of threads and the shape. Here every sum is a fixed tree of separate IEEE
additions in float64, and products are rounded before they are added (no fused multiply-add).
"""

import torch
from jaxtyping import Float64
from torch import Tensor

_BLOCK = 1 << 16
"""Elements worked on at once, so that a block stays in cache over all passes."""


def contracted(
    left: Float64[Tensor, "rows length"], right: Float64[Tensor, "columns length"]
) -> Float64[Tensor, "rows columns"]:
    """Return left @ right.T, each entry summed by halving.

    >>> import torch
    >>> left = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    >>> contracted(left, torch.ones(2, 3, dtype=torch.float64)).tolist()
    [[6.0, 6.0]]
    """
    length = left.shape[1]
    result = left.new_zeros(len(left), len(right))
    if not length:
        return result
    # The summed axis goes first, so that both halves are runs of memory; one piece of memory takes
    # the terms again and again. Neither changes which numbers are added to which.
    step = max(1, _BLOCK // length)
    columns, room = right[:, :, None].contiguous(), left.new_empty(length * min(step, len(left)))
    for start in range(0, len(left), step):
        block = left[start : start + step].T.contiguous()
        terms = room[: block.numel()].view(block.shape)
        for column, other in enumerate(columns):
            torch.mul(block, other, out=terms)
            size = length
            while size > 1:
                # Of an odd number the middle term waits for the next round. Halving also keeps the
                # rounding error in proportion to the logarithm of the length, where adding in a row
                # lets it grow with the length.
                half = (size + 1) // 2
                terms[: size - half].add_(terms[half:size])
                size = half
            result[start : start + step, column] = terms[0]
    return result


def outer_sum(
    left: Float64[Tensor, "rows rank"], right: Float64[Tensor, "columns rank"]
) -> Float64[Tensor, "rows columns"]:
    """Return left @ right.T, the outer products of the columns added one after the other."""
    result = left.new_zeros(len(left), len(right))
    step = max(1, _BLOCK // max(1, len(right)))
    columns = right.T.contiguous()
    # A block that stays in cache and takes every product in turn: strided columns and a fresh
    # piece of memory for each product took four times as long. Not addcmul, which may be fused.
    room = result.new_empty(min(step, len(left)), len(right))
    for start in range(0, len(left), step):
        block, factors = result[start : start + step], left[start : start + step].T.contiguous()
        product = room[: len(block)]
        for own, other in zip(factors, columns, strict=True):
            block.add_(torch.mul(own[:, None], other, out=product))
    return result
