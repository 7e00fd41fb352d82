"""Memory for the large matrices of a training step, used again in every step."""

import torch
from jaxtyping import Float
from torch import Tensor


class Scratch:
    """Lends large matrices for one step, and the same memory again in the next.

    Fresh memory of tens of megabytes comes from the system page by page, which costs a sixth of the
    dense product that fills it, and several times the sparse one.
    """

    def __init__(self) -> None:
        """Start without memory."""
        self._lent: list[Tensor] = []
        self._n_lent = 0

    def restart(self) -> None:
        """Take everything back: what was lent before may be overwritten from now on."""
        self._n_lent = 0

    def take(
        self, rows: int, columns: int, like: Tensor, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "rows columns"]:
        """Lend a matrix until the next restart; its content is left over.

        Args:
            rows: of the matrix.
            columns: of the matrix.
            like: a tensor on the same device.
            dtype: number type; that of `like` if not given.
        """
        number, size, dtype = self._n_lent, rows * columns, dtype or like.dtype
        # Each step asks for its matrices in the same order, so that the n-th finds memory of its
        # size; the last batch of an epoch, which is smaller, takes a part of it.
        self._n_lent += 1
        if number == len(self._lent):
            self._lent.append(like.new_empty(0))
        memory = self._lent[number]
        same = memory.dtype == dtype and memory.device == like.device
        if not same or memory.numel() < size:
            self._lent[number] = memory = like.new_empty(size, dtype=dtype)
        return memory[:size].view(rows, columns)
