"""The low-rank update of a layer: W' = W + A Bᵀ, b' = b + d.

What ROME, MEMIT and CoAR-Edit write, what masks a row (d alone lowers its bias), and what a LoRA
is: with LoRA's own names, A is its `lora_B` times the scaling and B the transpose of its `lora_A`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from salve_plugin.control.operators.base import Fold, Operator, Part, check_fields, owned, real
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line


@dataclass(frozen=True, eq=False)
class LowRankUpdate(Operator):
    """W' = W + A Bᵀ on some or all outputs of one layer, and b' = b + d.

    Attributes:
        left: A, (outputs, rank): one row for each output that changes.
        right: B, (inputs, rank); for a convolution, inputs times kernel positions, in the order of
            the flattened weight. Rank 0 leaves the weight as it is.
        shift: d, (outputs,); None for a layer without a bias, or whose bias stays.
    """

    __repr__ = one_line

    left: Tensor
    right: Tensor
    shift: Tensor | None = None

    form = "low_rank_update"
    formula = "W' = W + A Bᵀ, b' = b + d"

    def __post_init__(self) -> None:
        """Check every field; take private copies of the tensors.

        Raises:
            InputError: naming the field that cannot be used.
        """
        for name in ("left", "right"):
            object.__setattr__(self, name, owned(getattr(self, name), name, 2))
        if self.shift is not None:
            object.__setattr__(self, "shift", owned(self.shift, "shift", 1))
        shift = self.left.shape[:1] if self.shift is None else self.shift.shape
        if self.left.shape[1] != self.right.shape[1] or shift != self.left.shape[:1]:
            raise InputError(
                f"left {list(self.left.shape)}, right {list(self.right.shape)} and shift "
                f"{list(shift)} do not fit: expected (outputs, rank), (inputs, rank), (outputs,)"
            )

    @classmethod
    def from_lora(cls, lora_a: Tensor, lora_b: Tensor, scaling: float) -> "LowRankUpdate":
        """Return the update that a LoRA makes of a Linear: W + scaling · lora_B lora_A.

        Args:
            lora_a: (rank, inputs).
            lora_b: (outputs, rank).
            scaling: `lora_alpha` / rank, or / sqrt(rank) where the adapter is rank-stabilized.

        Raises:
            InputError: if one is no finite tensor of two axes, the ranks differ, or the scaling is
                no finite number.
        """
        down, up = owned(lora_a, "lora_a", 2), owned(lora_b, "lora_b", 2)
        # Float64, so that the scaling is not rounded into float32 factors before they are
        # multiplied.
        return cls(real(scaling, "scaling") * up.double(), down.T.double())

    def lora(self) -> tuple[Tensor, Tensor]:
        """Return (lora_A, lora_B) of the same update, for `lora_alpha` = rank.

        Raises:
            InputError: if a bias changes too, which a LoRA cannot express, or nothing does.
        """
        if self.shift is not None or not self.rank:
            raise InputError(
                "a LoRA adds a product to a weight; this update "
                + ("shifts the bias too" if self.shift is not None else "adds nothing")
            )
        return self.right.T.contiguous(), self.left.clone()

    @property
    def rank(self) -> int:
        """Rank of what is added to the weight."""
        return self.left.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """A, B and, if the bias changes, d."""
        tensors = {"left": self.left, "right": self.right}
        return tensors if self.shift is None else {**tensors, "shift": self.shift}

    def fields(self) -> dict[str, Any]:
        """Return nothing: the tensors say it all."""
        return {}

    @classmethod
    def rebuilt(cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "LowRankUpdate":
        """Return the update of these tensors; see `Operator.rebuilt`."""
        # A shift is there or not; everything else is refused by name.
        names = {"left", "right"} | ({"shift"} & set(tensors))
        check_fields(cls.form, fields, set(), tensors, names)
        return cls(tensors["left"], tensors["right"], tensors.get("shift"))

    def check(self, width: int, rows: int | None, outputs: tuple[int, ...]) -> None:
        """Raise unless there is one layer, and A has a row for each output that changes."""
        if len(outputs) != 1:
            raise InputError(f"a low-rank update is of one layer; {len(outputs)} are named")
        # Row i of A belongs to the i-th of the changed outputs in ascending order, the order of an
        # edit.
        expected = outputs[0] if rows is None else rows
        if len(self.left) != expected:
            raise InputError(
                f"left has {len(self.left)} rows for {expected} outputs that change; give one each"
            )

    def check_inputs(self, shape: Sequence[int]) -> None:
        """Raise InputError unless B has a row for each input of a weight of this shape."""
        inputs = prod(shape[1:])
        if len(self.right) != inputs:
            raise InputError(
                f"right has {len(self.right)} rows for {inputs} inputs of the layer (features "
                "times kernel positions); give one each"
            )

    @property
    def moves_origin(self) -> bool:
        """Whether there is a shift."""
        return self.shift is not None

    @property
    def at_zero(self) -> "LowRankUpdate":
        """The update by nothing."""
        shift = None if self.shift is None else torch.zeros_like(self.shift)
        return replace(self, left=torch.zeros_like(self.left), shift=shift)

    def activation(self, x: Tensor, axis: int) -> Tensor:
        """Refuse: an update is of a layer, it is no map of the site.

        Raises:
            InputError: always.
        """
        raise InputError("a low-rank update changes a layer, not a site's activation")

    def reader_weight(self, weight: Tensor) -> Part:
        """Return W + A Bᵀ; see `Operator.reader_weight`."""
        self.check_inputs(weight.shape)
        if not self.rank:
            return Part(None, None, None, tuple(weight.shape[1:]))
        # B is flat over inputs and kernel positions at once, so that A has one "position" only.
        left, right = self.left.double()[:, None], self.right.double()
        return Part(None, left, right, tuple(weight.shape[1:]))

    def reader_bias(self, weight: Tensor) -> Part:
        """Return b + d; see `Operator.reader_bias`."""
        if self.shift is None:
            return Part(None, None, None, ())
        shift = self.shift.double()
        return Part(None, shift[:, None, None], shift.new_ones(1, 1), ())

    def writer_weight(self, weight: Tensor, fold: Fold) -> Part:
        """Return W + A Bᵀ; the layer is what is updated, whatever follows it."""
        return self.reader_weight(weight)

    def writer_bias(self, bias: Tensor, fold: Fold) -> Part:
        """Return b + d."""
        return self.reader_bias(bias)
