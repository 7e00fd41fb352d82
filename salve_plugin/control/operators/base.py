"""What every operator must say of itself, and what it makes of one parameter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.operators.arithmetic import outer_sum
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line

Role = Literal["reader", "writer"]
"""A layer reads the site (its input features are the site's) or writes it (its outputs are)."""

Index = slice | Tensor


@dataclass(frozen=True, eq=False)
class Part:
    r"""What one edit makes of some rows P of one parameter: $P \circ m + A B^T$, in float64.

    Both pieces are computed from the pristine parameter. So parts of several edits compose without
    an order: factors are multiplied, low-rank terms are added.

    Attributes:
        factors: m, broadcast over the rows: (1, ...) is the same in every row, else one entry a
            row. None: all ones.
        left: A, (rows, positions, rank): positions are those of a convolution's kernel, if the
            features are on the parameter's second axis; else 1. None: nothing is added.
        right: B, (columns, rank).
        shape: of one row of the parameter.
    """

    factors: Float64[Tensor, "..."] | None
    left: Float64[Tensor, "rows positions rank"] | None
    right: Float64[Tensor, "columns rank"] | None
    shape: tuple[int, ...]

    @property
    def is_same_in_every_row(self) -> bool:
        """Whether every row is multiplied by the same factors and nothing is added."""
        return self.left is None and (self.factors is None or len(self.factors) == 1)

    def factors_at(self, rows: Index) -> Float64[Tensor, "..."] | None:
        """Return the factors of some of the rows, by their positions among the part's rows."""
        if self.factors is None or len(self.factors) == 1:
            return self.factors
        return self.factors[rows]

    def added_at(self, rows: Index) -> Float64[Tensor, "..."] | None:
        """Return what is added to some of the rows, in the parameter's layout."""
        if self.left is None or self.right is None:
            return None
        left = self.left[rows]
        count, positions, rank = left.shape
        # Not `left @ right.T`: an edited weight is compared bit for bit later, see `arithmetic`.
        added = outer_sum(left.reshape(count * positions, rank), self.right)
        if positions == 1:
            return added.reshape(count, *self.shape)
        # (rows, positions, features) to the layout of a convolution, features first.
        return added.reshape(count, *self.shape[1:], self.shape[0]).movedim(-1, 1)


@dataclass(frozen=True, eq=False)
class Fold:
    """The per-feature affine map between a writer's output y and the site: x = scale y + shift.

    Attributes:
        scale: of LayerScale or BatchNorm, (width,), no entry zero.
        shift: (width,), without the bias that is edited, if that comes after the scale.
        bias_last: whether the bias that is edited is added after the scale (a BatchNorm's own).
    """

    __repr__ = one_line

    scale: Float64[Tensor, " width"]
    shift: Float64[Tensor, " width"]
    bias_last: bool

    @classmethod
    def none(cls, width: int) -> "Fold":
        """Return the identity."""
        return cls(
            torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64), False
        )


class Operator(ABC):
    """A change of a site's activation, or of a layer, that weights can take over for good.

    The forms are a closed vocabulary (`salve_plugin.control.operators.FORMS`): a file names a form,
    never a class to import. An operator is a frozen value with CPU tensors of its own.

    Attributes:
        form: its name in files.
        formula: what it does, in one line, for cards, plots and documentation.
    """

    form: ClassVar[str]
    formula: ClassVar[str]

    def __getstate__(self) -> dict[str, object]:
        """Pickle the fields, not what was derived from them."""
        fields = type(self).__annotations__
        return {name: value for name, value in self.__dict__.items() if name in fields}

    @property
    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What travels beside `fields`, by name."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Return the numbers that travel, as plain JSON values."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Operator":
        """Return the operator of `fields` and `tensors`.

        Raises:
            InputError: if one is missing, unknown or out of range.
        """

    @abstractmethod
    def check(self, width: int, rows: int | None, outputs: tuple[int, ...]) -> None:
        """Raise unless the operator fits a site or layer; shapes are compared, never broadcast.

        Args:
            width: of the site.
            rows: how many outputs of a reader change; None means all.
            outputs: number of outputs of every target.

        Raises:
            InputError: with both shapes.
        """

    @property
    @abstractmethod
    def moves_origin(self) -> bool:
        """Whether the zero activation changes too, so that readers need a bias."""

    @property
    @abstractmethod
    def at_zero(self) -> "Operator":
        """The operator of the same family that changes nothing: what its strength is counted from.

        Edits whose operators differ in strength only have the same `at_zero`.
        """

    @abstractmethod
    def activation(self, x: Tensor, axis: int) -> Tensor:
        """Return the activation as the operator changes it; differentiable.

        Args:
            x: the site's activation.
            axis: of its features.
        """

    @abstractmethod
    def reader_weight(self, weight: Tensor) -> Part:
        """Return what becomes of rows of a weight that reads the site, (rows, width, *kernel)."""

    @abstractmethod
    def reader_bias(self, weight: Tensor) -> Part:
        """Return what becomes of the biases of those rows, given the rows of the weight."""

    @abstractmethod
    def writer_weight(self, weight: Tensor, fold: Fold) -> Part:
        """Return what becomes of a weight that writes the site, (width, inputs, *kernel)."""

    @abstractmethod
    def writer_bias(self, bias: Tensor, fold: Fold) -> Part:
        """Return what becomes of the bias of a layer that writes the site, (width,)."""


def owned(tensor: Tensor, name: str, axes: int) -> Tensor:
    """Return a finite floating tensor as a private CPU copy, double kept, else float32; no -0.

    Raises:
        InputError: if it is something else.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim != axes:
        found = f"{tensor.dtype}{list(tensor.shape)}" if isinstance(tensor, Tensor) else tensor
        raise InputError(f"{name} is {found!r:.200}; expected a floating tensor with {axes} axes")
    if tensor.is_meta or tensor.layout != torch.strided:
        raise InputError(
            f"{name} is on the device '{tensor.device}' with the layout {tensor.layout}; expected "
            "a dense tensor that has values"
        )
    # Two types only: every 16-bit number is a float32 exactly, and a file then needs no others.
    kind = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    copy = tensor.detach().to("cpu", kind, copy=True).contiguous()
    if not bool(copy.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinite values")
    return torch.where(copy == 0, torch.zeros((), dtype=kind), copy)  # equal values, equal bytes


def real(value: object, name: str) -> float:
    """Return a single real number, of Python, NumPy or torch, as a float.

    Raises:
        InputError: if it is something else: text, a truth value, several numbers.
    """
    # A bool is a number to Python, and a tensor of one element converts to one; both are slips
    # here, and `float` would accept them.
    kind = str(getattr(value, "dtype", type(value).__name__))
    if not isinstance(value, str | bytes) and "bool" not in kind and not getattr(value, "ndim", 0):
        try:
            return float(value)  # type: ignore[arg-type] # what cannot be one raises
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass
    raise InputError(f"{name} is {value!r:.200}; expected a number")


def check_fields(
    form: str, fields: Mapping[str, Any], names: set[str], tensors: Mapping[str, Tensor],
    tensor_names: set[str],
) -> None:  # fmt: skip
    """Raise InputError unless exactly these fields and tensors are there."""
    if set(fields) != names or set(tensors) != tensor_names:
        raise InputError(
            f"operator '{form}' has the fields {sorted(fields)} and tensors {sorted(tensors)}; "
            f"expected {sorted(names)} and {sorted(tensor_names)}"
        )


def number(form: str, fields: Mapping[str, Any], name: str) -> float:
    """Return a field that is a number.

    Raises:
        InputError: if it is something else.
    """
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} of operator '{form}' is {value!r}; expected a number")
    return float(value) + 0.0  # -0 becomes 0: equal operators, equal digests
