"""A site: one named activation of a model, and the linear layers around it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.store.record import Record

Layout = Literal["pooled", "tokens", "nchw", "nhwc"]
Side = Literal["in", "out"]

Rewrite = Callable[[Tensor], Tensor]
"""From activations (rows, width) to what takes their place (rows, width)."""

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]

HEAD_INPUT = "unembed.hook_in"
"""The classifier's input: the paper's site, for CNN and ViT alike."""


@dataclass(frozen=True)
class Site(Record):
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
        readers: paths of the linear layers (Linear, ungrouped Conv2d) whose input it is.
        writers: paths of the linear layers whose output it is, `affine` applied.
        affine: paths of what scales or shifts each feature on its own between the writer's output
            and this activation, in order: modules (LayerScale, BatchNorm) in eval mode, and
            parameters that the block multiplies by itself (`gamma` of BEiT and ConvNeXt).
    """

    __repr__ = one_line

    name: str
    module: str
    side: Side
    layout: Layout
    width: Positive
    prefix_tokens: Count = 0
    grid: tuple[Positive, Positive] | None = None
    readers: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    affine: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError if there are prefix tokens or a patch grid without tokens."""
        if self.layout != "tokens" and (self.prefix_tokens or self.grid is not None):
            raise InputError(
                f"site '{self.name}' of layout '{self.layout}' has {self.prefix_tokens} prefix "
                f"tokens and the patch grid {self.grid}; only tokens have those"
            )

    @property
    def channel_axis(self) -> int:
        """The axis of the activation that holds the features."""
        return {"pooled": 1, "nchw": 1, "tokens": 2, "nhwc": 3}[self.layout]

    def rows(self, activation: Tensor) -> Float[Tensor, "rows width"]:
        """Return the activation as one row of features per image and position, prefix included.

        Args:
            activation: batch first, laid out as `layout` says.

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

    def recorded_rows(self, activation: Tensor) -> Float[Tensor, "rows width"]:
        """Return what recordings hold, and dictionaries read: `rows` without the prefix tokens.

        Args:
            activation: batch first, laid out as `layout` says.

        Raises:
            InputError: as `rows`.
        """
        if self.layout == "tokens":
            # They are no place in the image: a latent of theirs would have no position to show.
            activation = activation[:, self.prefix_tokens :]
        return self.rows(activation)


def replacing(site: Site, rewrite: Rewrite) -> Rewrite:
    """Return the function from the site's activation to the one with rewritten rows.

    Rows are those of a recording: one for each image and position, prefix tokens excepted.
    """

    def replace(activation: Tensor) -> Tensor:
        prefix = site.prefix_tokens if site.layout == "tokens" else 0
        if prefix:
            # Recordings leave them out, so no dictionary has learned to rebuild them.
            prefix_tokens, activation = activation[:, :prefix], activation[:, prefix:]
        rows = site.rows(activation)
        moved = activation.movedim(site.channel_axis, -1)
        rewritten = rewrite(rows).to(activation).view(moved.shape).movedim(-1, site.channel_axis)
        return torch.cat([prefix_tokens, rewritten], dim=1) if prefix else rewritten

    return replace
