r"""The low-rank map of a site: $x' = x + (\lambda-1)\,U(V^T x - c)$.

Fold, directional and mean ablation, LEACE, SPLINCE and INLP are ways to obtain U, V and c; what the
weights become does not depend on the way. With $V^TU = I$ the map is an oblique projection at
$\lambda = 0$: $V^T x$ is what is removed, U where it is taken from, c what it is replaced by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salve_plugin.control.operators.arithmetic import contracted
from salve_plugin.control.operators.base import (
    Fold,
    Operator,
    Part,
    check_fields,
    number,
    owned,
    real,
)  # fmt: skip
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line


@dataclass(frozen=True, eq=False)
class LowRankMap(Operator):
    r"""$x' = x + (\lambda-1)\,U(V^T x - c)$, of rank r.

    Attributes:
        write: U, the directions that change, (width, rank).
        read: V, what is read off the activation, (width, rank).
        offset: c, what is left of the reading, (rank,).
        scale: $\lambda$, what remains: 0 removes, 1 changes nothing, 2 doubles.
    """

    __repr__ = one_line

    write: Tensor
    read: Tensor
    offset: Tensor
    scale: float = 0.0

    form = "low_rank_map"
    formula = "x' = x + (λ−1) U (Vᵀx − c)"

    def __post_init__(self) -> None:
        """Check every field; take private copies of the tensors.

        Raises:
            InputError: naming the field that cannot be used.
        """
        for name, axes in (("write", 2), ("read", 2), ("offset", 1)):
            object.__setattr__(self, name, owned(getattr(self, name), name, axes))
        width, rank = self.write.shape
        if self.read.shape != self.write.shape or self.offset.shape != (rank,):
            raise InputError(
                f"write {list(self.write.shape)}, read {list(self.read.shape)} and offset "
                f"{list(self.offset.shape)} do not fit: expected (width, rank) twice and (rank,)"
            )
        if not 1 <= rank <= width:
            raise InputError(f"rank {rank} is not from 1 to the site's width {width}")
        # + 0.0 makes -0 a 0: two maps that do the same must have the same digest.
        scale = real(self.scale, "scale") + 0.0
        if not -1e6 <= scale <= 1e6:  # also refuses NaN
            raise InputError(f"scale {scale} is not a number of reasonable size; 0 removes")
        object.__setattr__(self, "scale", scale)

    @property
    def rank(self) -> int:
        """Number of directions r."""
        return self.write.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """U, V and c."""
        return {"write": self.write, "read": self.read, "offset": self.offset}

    def fields(self) -> dict[str, Any]:
        """Return the scale."""
        return {"scale": self.scale}

    @classmethod
    def rebuilt(cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "LowRankMap":
        """Return the map of these fields and tensors; see `Operator.rebuilt`."""
        check_fields(cls.form, fields, {"scale"}, tensors, {"write", "read", "offset"})
        scale = number(cls.form, fields, "scale")
        return cls(tensors["write"], tensors["read"], tensors["offset"], scale)

    def check(self, width: int, rows: int | None, outputs: tuple[int, ...]) -> None:
        """Raise unless U and V are as wide as the site; see `Operator.check`."""
        if len(self.write) != width:
            raise InputError(
                f"a low-rank map of {len(self.write)} features does not fit a site of {width}"
            )

    @property
    def moves_origin(self) -> bool:
        """Whether c is not zero."""
        return bool(self.offset.any()) and self.scale != 1

    @property
    def at_zero(self) -> "LowRankMap":
        """The map with scale 1."""
        return replace(self, scale=1.0)

    def activation(self, x: Tensor, axis: int) -> Tensor:
        """Return the mapped activation; see `Operator.activation`."""
        write, read, offset = (each.to(x.device, x.dtype) for each in self.tensors.values())
        change = (x.movedim(axis, -1) @ read - offset) @ write.T
        return x + (self.scale - 1) * change.movedim(-1, axis)

    def reader_weight(self, weight: Tensor) -> Part:
        r"""Return $W + (\lambda-1)(WU)V^T$; see `Operator.reader_weight`."""
        left = self._read_by(weight)
        return self._part(left, self.read.double(), tuple(weight.shape[1:]))

    def reader_bias(self, weight: Tensor) -> Part:
        r"""Return $b - (\lambda-1)WUc$; see `Operator.reader_bias`.

        Exact where every position of a kernel reads the site, never padding.
        """
        # What every output receives of U c is summed over kernel positions: each of them reads the
        # same constant.
        left = self._read_by(weight)
        shift = contracted(left.sum(1) if left.shape[1] > 1 else left[:, 0], self._offset_row())
        return self._vector(-shift[:, 0])

    def writer_weight(self, weight: Tensor, fold: Fold) -> Part:
        r"""Return $W + (\lambda-1)S^{-1}U (SV)^T W$; see `Operator.writer_weight`."""
        # The site is x = S y + t with y = W u + b from the layer: the map of x is solved for y, so
        # that U is divided by S and V multiplied by it.
        write, read = self._behind(fold)
        # A writer's features are its rows, so that inputs and kernel positions may be flattened
        # together.
        columns = weight.double().reshape(len(weight), -1).T.contiguous()
        right = contracted(columns, read.T.contiguous())
        return self._part(write[:, None], right, tuple(weight.shape[1:]))

    def writer_bias(self, bias: Tensor, fold: Fold) -> Part:
        r"""Return $b + (\lambda-1)S^{-1}U(V^T(Sb + t) - c)$; see `Operator.writer_bias`.

        With `fold.bias_last`, $b + (\lambda-1)U(V^T(b + t) - c)$.
        """
        # The constant part of the site: a bias behind the affine map (a BatchNorm's own) reaches it
        # as it is, one before the map is scaled on its way.
        constant = bias.double() if fold.bias_last else fold.scale * bias.double()
        reading = contracted((constant + fold.shift)[None], self.read.double().T.contiguous())
        amount = reading - self.offset.double()
        change = contracted(self.write.double(), amount)[:, 0]
        change = change if fold.bias_last else change / fold.scale
        return self._vector(change)

    def _read_by(self, weight: Tensor) -> Tensor:
        """Return W U for every row and kernel position, (rows, positions, rank)."""
        # Features last: a kernel position is a row of its own, since each of them reads the site.
        rows = weight.double().movedim(1, -1).reshape(-1, weight.shape[1])
        amounts = contracted(rows, self.write.double().T.contiguous())
        return amounts.reshape(len(weight), -1, self.rank)

    def _part(self, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Part:
        r"""Return the part that adds $(\lambda-1)$ times a product; at scale 1, nothing.

        Even a zero that is added would take the sign off a -0.
        """
        if self.scale == 1:
            return Part(None, None, None, shape)
        return Part(None, (self.scale - 1) * left, right, shape)

    def _vector(self, change: Tensor) -> Part:
        """Return the same for a bias."""
        return self._part(change[:, None, None], change.new_ones(1, 1), ())

    def _offset_row(self) -> Tensor:
        return self.offset.double()[None]

    def _behind(self, fold: Fold) -> tuple[Tensor, Tensor]:
        """Return U and V as they act on what the layer itself puts out, before the fold."""
        scale = fold.scale[:, None]
        return self.write.double() / scale, self.read.double() * scale


def joint_map(maps: Sequence[LowRankMap]) -> LowRankMap:
    r"""Return one map that does what several are meant to do together.

    Applied one beside the other, maps that share directions change the shared part twice. The joint
    map reads all of $V = [V_1 V_2 ...]$ and writes $U (V^TU)^{-1}$, so that at $\lambda = 0$ every
    reading becomes its own offset, exactly once: $V^T x' = c$.

    Args:
        maps: of one site, with the same scale, their readings linearly independent.

    Raises:
        InputError: if there is none, the scales differ, or what they read is linearly dependent.
    """
    if not isinstance(maps, Sequence) or not all(isinstance(part, LowRankMap) for part in maps):
        raise InputError(f"a joint map is of a list of LowRankMaps; got {maps!r:.200}")
    scales, widths = [part.scale for part in maps], [len(part.read) for part in maps]
    if len(set(scales)) != 1 or len(set(widths)) != 1:
        raise InputError(
            f"a joint map is of at least one map, all with one scale and of one site; got the "
            f"scales {scales} and widths {widths}"
        )
    write = torch.cat([part.write.double() for part in maps], 1)
    read = torch.cat([part.read.double() for part in maps], 1)
    offset = torch.cat([part.offset.double() for part in maps])
    # Vᵀx' = Vᵀx - (VᵀU) M (Vᵀx - c) is c for every x only if M is the inverse of VᵀU, which is
    # folded into U; where VᵀU is nearly singular, that inverse would blow up what is written.
    mixing = read.T @ write
    finite = bool(mixing.isfinite().all())
    # A solution loses as many digits as the condition number has: at 1e8 float64 has about as many
    # left as float32 weights can hold.
    if not finite or not float(torch.linalg.cond(mixing)) <= 1e8:  # of a zero matrix it is NaN
        raise InputError(
            "the maps read or write linearly dependent directions, so that no joint map sets every "
            "reading; leave out the map whose directions the others already have"
        )
    # U (VᵀU)⁻¹, without forming the inverse.
    return LowRankMap(torch.linalg.solve(mixing.T, write.T).T, read, offset, scales[0])
