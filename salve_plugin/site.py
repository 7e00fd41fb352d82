"""A site: one named activation of a model, and the linear layers around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import InputError

Layout = Literal["pooled", "tokens", "nchw", "nhwc"]
Side = Literal["in", "out"]

HEAD_INPUT = "unembed.hook_in"
"""The classifier's input: the paper's site, for CNN and ViT alike."""


@dataclass(frozen=True)
class Site:
    """A named activation: where it is read, how it is laid out, which linear layers touch it.

    Attributes:
        name: hook-point name in TransformerLens' vocabulary, e.g. `unembed.hook_in`.
        module: path of the module in the bare model (`""` is the model itself).
        side: whether the activation is the module's first input or its (first) output.
        layout: `pooled` (batch, width), also (batch, width, 1, 1); `tokens` (batch, token, width);
            `nchw` (batch, width, height, width); `nhwc` (batch, height, width, width).
        width: the number of features D.
        prefix_tokens: for `tokens`, how many leading tokens (class, register) are not patches.
        grid: for `tokens`, the (height, width) of the patch grid.
        readers: paths of the Linear or 1x1 Conv2d layers whose input is this activation.
        writers: paths of the Linear or 1x1 Conv2d layers whose output is this activation.
    """

    name: str
    module: str
    side: Side
    layout: Layout
    width: int
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    readers: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()

    @property
    def channel_axis(self) -> int:
        """The axis of the activation that holds the features."""
        return {"pooled": 1, "nchw": 1, "tokens": 2, "nhwc": 3}[self.layout]

    def rows(self, activation: Tensor) -> Float[Tensor, "rows width"]:
        """Return the activation as one row of features per image and position, prefix included.

        Raises:
            InputError: if the activation's feature axis is not `width` long.
        """
        axis = self.channel_axis
        if activation.ndim <= axis or activation.shape[axis] != self.width:
            raise InputError(
                f"activation of shape {tuple(activation.shape)} does not fit site '{self.name}': "
                f"expected layout '{self.layout}' with {self.width} features on axis {axis}"
            )
        return activation.movedim(axis, -1).reshape(-1, self.width)

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values."""
        return {
            "name": self.name,
            "module": self.module,
            "side": self.side,
            "layout": self.layout,
            "width": self.width,
            "prefix_tokens": self.prefix_tokens,
            "grid": None if self.grid is None else list(self.grid),
            "readers": list(self.readers),
            "writers": list(self.writers),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> "Site":
        """Rebuild a site from `to_json`.

        Raises:
            InputError: if a field is missing, unknown or of the wrong kind.
        """
        expected = {
            "name": str,
            "module": str,
            "side": str,
            "layout": str,
            "width": int,
            "prefix_tokens": int,
            "grid": (list, type(None)),
            "readers": list,
            "writers": list,
        }
        wrong = sorted(set(expected) ^ set(fields)) or sorted(
            name
            for name, kind in expected.items()
            if not isinstance(fields[name], kind) or isinstance(fields[name], bool)  # type: ignore[arg-type] # a table of classes is what isinstance takes
        )
        if wrong:
            raise InputError(
                f"site has missing, unknown or ill-typed fields {wrong}; expected {list(expected)}"
            )
        if fields["layout"] not in ("pooled", "tokens", "nchw", "nhwc"):
            raise InputError(f"unknown site layout {fields['layout']!r}")
        if fields["side"] not in ("in", "out"):
            raise InputError(f"unknown site side {fields['side']!r}")
        values = dict(fields)
        for name in ("readers", "writers"):
            paths = values[name]
            assert isinstance(paths, list)
            if not all(isinstance(path, str) for path in paths):
                raise InputError(f"site field '{name}' must be a list of module paths: {paths!r}")
            values[name] = tuple(paths)
        grid = values["grid"]
        if grid is not None:
            assert isinstance(grid, list)
            if len(grid) != 2 or not all(type(side) is int and side > 0 for side in grid):
                raise InputError(f"site grid must be two positive integers, got {grid!r}")
            values["grid"] = (grid[0], grid[1])
        return cls(**values)  # type: ignore[arg-type] # every field was checked above
