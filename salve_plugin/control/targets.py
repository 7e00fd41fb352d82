"""What an edit writes to: parameters of layers that read a site, or of the layer that writes it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from torch import nn

from salve_plugin.control.folds import affine_bias, fold_of
from salve_plugin.control.operators import LowRankUpdate, Operator, Role
from salve_plugin.control.slots import module_at, parameter_at
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.faces.one_line import one_line
from salve_plugin.site import Count, Positive, Site
from salve_plugin.store.record import Record

View = Literal["linear", "conv2d", "packed"]
"""A Linear; an ungrouped Conv2d with any kernel; a matrix (outputs, inputs) of another module."""


_VERBS: dict[Role, str] = {"reader": "read", "writer": "write"}


@dataclass(frozen=True)
class Target(Record):
    """One layer that an edit changes, by its parameters.

    Attributes:
        weight: path of the weight in the bare model.
        bias: path of the bias that changes with it; None if none has to.
        role: whether the layer reads the site or writes it.
        view: how the parameter is a matrix.
        outputs: first and one past the last row of a fused weight (a query, key or value) that
            belong to the site; None means all of them.
        affine: paths of what scales or shifts features between a writer's output and the site.
    """

    __repr__ = one_line

    weight: str
    bias: str | None
    role: Role
    view: View
    outputs: tuple[Count, Positive] | None = None
    affine: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            InputError: if the outputs are no range, or a reader has affine modules.
        """
        if self.outputs is not None and self.outputs[0] >= self.outputs[1]:
            raise InputError(f"outputs {self.outputs} of '{self.weight}' are no ascending range")
        if self.role == "reader" and self.affine:
            raise InputError("affine modules lie behind a writer, not in front of readers")

    @property
    def paths(self) -> tuple[str, ...]:
        """The parameters that change."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def n_outputs(self, shape: Sequence[int]) -> int:
        """Return how many outputs of a weight of this shape belong to the target."""
        return shape[0] if self.outputs is None else self.outputs[1] - self.outputs[0]

    def rows(self, wanted: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the rows of the parameters: the wanted outputs, counted from the slice's first."""
        if self.outputs is None:
            return wanted
        first, stop = self.outputs
        return tuple(range(first, stop) if wanted is None else (first + row for row in wanted))

    def check_shape(self, width: int, shape: Sequence[int]) -> None:
        """Raise InputError unless a weight of this shape can read or write `width` features."""
        axes = 4 if self.view == "conv2d" else 2
        features = None
        if len(shape) == axes and (self.outputs is None or self.outputs[1] <= shape[0]):
            features = shape[1] if self.role == "reader" else self.n_outputs(shape)
        if features != width:
            raise InputError(
                f"'{self.weight}' of shape {list(shape)} is no {self.view} weight that "
                f"{_VERBS[self.role]}s {width} features (outputs {self.outputs or 'all'})"
            )


def targets_at(
    model: nn.Module,
    site: Site,
    operator: Operator,
    role: Role | None = None,
    layer: str | None = None,
) -> tuple[Target, ...]:
    """Return what an operator has to change so that the site changes for all who use it.

    Readers are preferred, since they leave the site itself as it is; a site without known readers
    is changed where it is written.

    Args:
        model: the bare model.
        site: with its readers and writers.
        operator: what is to be done to the site.
        role: "reader" or "writer", to insist on one of them.
        layer: which of several, for an update, which is of one layer.

    Raises:
        UnsupportedModelError: if no layer does, one cannot take the change over, or an offset
            would need a bias that is not there; the message names the way out.
        InputError: if the role or layer is unknown.
    """
    if role not in (None, "reader", "writer"):
        raise InputError(f"role {role!r} is unknown; choose 'reader' or 'writer'")
    chosen: Role = role or ("reader" if site.readers else "writer")
    paths = site.readers if chosen == "reader" else site.writers
    if not paths:
        raise UnsupportedModelError(
            f"no linear layer is known to {_VERBS[chosen]} site '{site.name}' and nothing else, so "
            "no permanent edit of it is exact"
        )
    if layer is not None:
        if layer not in paths or not isinstance(operator, LowRankUpdate):
            raise InputError(
                f"layer '{layer}' is to be one of {list(paths)}, and the operator a low-rank "
                "update: a change of the site itself is one of all its layers"
            )
        paths = (layer,)
    chain = site.affine if chosen == "writer" else ()
    names: dict[int, str] = {}
    targets: list[Target] = []
    for path in paths:
        target = _target(model, path, module_at(model, path), chosen, operator, chain)
        # Tied weights are one parameter, called by its first name; their biases are not tied.
        first = names.setdefault(id(parameter_at(model, target.weight)), target.weight)
        # A further name of a tied weight is a target only for the bias that it brings.
        if first == target.weight or target.bias is not None:
            targets.append(replace(target, weight=first))
    return tuple(targets)


def view_of(path: str, module: nn.Module) -> View:
    """Return how a layer's weight is a matrix.

    Raises:
        UnsupportedModelError: if it is none.
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return "conv2d"
    raise UnsupportedModelError(
        f"'{path}' belongs to a {type(module).__name__}; only Linear and ungrouped Conv2d "
        "layers can be edited"
    )


def _target(
    model: nn.Module, path: str, module: nn.Module, role: Role, operator: Operator,
    affine: tuple[str, ...],
) -> Target:  # fmt: skip
    view, weight = view_of(path, module), f"{path}.weight"
    own = f"{path}.bias" if module._parameters.get("bias") is not None else None
    if role == "reader":
        if not operator.moves_origin:
            return Target(weight, None, role, view)
        _check_padding(path, module, operator)
        if own is None:
            raise UnsupportedModelError(_no_bias(path))
        return Target(weight, own, role, view)
    if own is None:
        # A convolution in front of a BatchNorm mostly has no bias; the norm's own reaches the site
        # as well.
        own = affine_bias(model, affine)
    if isinstance(operator, LowRankUpdate) and operator.shift is None:
        own = None
    # The site is S y + t, and a map of it acts on t as well: where t is not zero a bias changes
    # even if the map itself goes through the origin.
    needs = operator.moves_origin or bool(fold_of(model, affine, None, 0).shift.any())
    if own is None and needs:
        raise UnsupportedModelError(_no_bias(path))
    return Target(weight, own, role, view, affine=affine)


def _check_padding(path: str, module: nn.Module, operator: Operator) -> None:
    """Refuse an offset where the kernel sees zeros that no activation has become."""
    if isinstance(operator, LowRankUpdate) or not isinstance(module, nn.Conv2d):
        return
    padded = module.padding == "same" and prod(module.kernel_size) > 1
    padded = padded or (not isinstance(module.padding, str) and any(module.padding))
    if padded and module.padding_mode == "zeros":
        raise UnsupportedModelError(
            f"'{path}' pads with zeros, which an offset does not reach: the edit would be wrong "
            "in every output that sees the border. Use a map through the origin (offset 0; `erase` "
            "makes one with centre='origin'), or a site that no padded convolution reads"
        )


def _no_bias(path: str) -> str:
    return (
        f"'{path}' has no bias that could take over the constant part of this edit; use a map "
        "through the origin (offset 0), or a site whose layers have biases"
    )
