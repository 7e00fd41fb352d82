"""How an activation is laid out, read off its shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from salve_plugin.site import Layout
from salve_timm.call_log import CallLog

MOST_PREFIX_TOKENS = 17
"""More leading tokens than this (a class token and 16 registers) are taken for a wrong grid."""


@dataclass(frozen=True)
class Arrangement:
    """The fields of a `Site` that a shape determines."""

    layout: Layout
    width: int
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layouts:
    """Reads layouts off the shapes of one model.

    Attributes:
        maps: (channels, height, width) that `forward_intermediates` reports, shallow to deep.
        nhwc: whether the model says that its maps are channels-last.
        prefix: how many leading tokens the model says it has.
        images: how many images the shapes are of; windows and pixels in the batch axis are told
            apart by it.
        sides: (height, width) of these images.
        grids: (height, width) of all maps that convolutions made.
        constant: by number of tokens, how many leading ones no image changes when they are first
            seen: what a model that says nothing about itself has for prefix.
    """

    maps: tuple[tuple[int, int, int], ...]
    nhwc: bool
    prefix: int
    images: int
    sides: tuple[int, int] = (1, 1)
    grids: frozenset[tuple[int, int]] = frozenset()
    constant: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        maps: list[tuple[int, int, int]],
        probe: Sequence[int],
        log: CallLog,
    ) -> "Layouts":
        """Collect what the model says about itself, and what its forward pass shows.

        Args:
            model: as it was when it ran.
            maps: from `spatial_maps`.
            probe: the shape of the images.
            log: the forward pass.
        """
        prefix = getattr(model, "num_prefix_tokens", 0)
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        if not maps and isinstance(grid, tuple) and len(grid) == 2:
            maps = [(0, *grid)]
        nhwc = getattr(model, "output_fmt", "") == "NHWC"
        prefix = prefix if isinstance(prefix, int) else 0
        calls = sorted(log.calls.values(), key=lambda call: call.ended)
        grids = frozenset(
            (call.result_shape[2], call.result_shape[3])
            for call in calls
            if isinstance(call.module, nn.Conv2d) and len(call.result_shape) == 4
        )
        constant: dict[int, int] = {}
        for call in calls:
            if 0 < call.constant <= MOST_PREFIX_TOKENS:
                constant.setdefault(call.result_shape[1], call.constant)
        sides = (probe[-2], probe[-1])
        return cls(tuple(maps), nhwc, prefix, probe[0], sides, grids, constant)

    def read(
        self, shape: tuple[int, ...], *, features_last: bool | None = None
    ) -> Arrangement | None:
        """Return the arrangement of a (batch, ...) activation; None if it has no positions.

        Args:
            shape: of the activation.
            features_last: whether a map has its features on the last axis, where that is known.
        """
        if not shape or shape[0] != self.images:
            return None
        if len(shape) == 4 and features_last is not None:
            height, width = shape[1:3] if features_last else shape[2:]
            if not self._is_grid(height, width):
                return None  # queries or keys, (batch, head, token, feature)
            return Arrangement("nhwc", shape[3]) if features_last else Arrangement("nchw", shape[1])
        if len(shape) == 4:
            return self._map(shape)
        return self._tokens(shape) if len(shape) == 3 else None

    def _map(self, shape: tuple[int, ...]) -> Arrangement | None:
        _, a, b, c = shape
        # What the model reports is certain; then maps have the shape of the images; last comes its
        # word on its format, which is about what it returns, not about every module inside.
        known = [(a, b, c) in self.maps, (c, a, b) in self.maps]
        alike = [self._is_like_images(b, c), self._is_like_images(a, b)]
        for nchw, nhwc in (known, alike):
            if nchw != nhwc:
                return Arrangement("nchw", a) if nchw else Arrangement("nhwc", c)
        if not self._is_grid(b, c) and not self._is_grid(a, b):
            return None
        return Arrangement("nhwc", c) if self.nhwc else Arrangement("nchw", a)

    def _is_grid(self, height: int, width: int) -> bool:
        """Say whether anything shows that positions lie on such a grid."""
        known = self.grids | {(across, down) for _, across, down in self.maps}
        return (height, width) in known or self._is_like_images(height, width)

    def _is_like_images(self, height: int, width: int) -> bool:
        """Say whether a map has the images' ratio of sides, to the pixel that rounding costs."""
        # With a stride s, h = H / s and w = W / s but for less than one, rounded to the same side:
        # h W - w H is then below the longer side.
        tall, wide = self.sides
        return abs(height * wide - width * tall) < max(tall, wide) or height * wide == width * tall

    def _tokens(self, shape: tuple[int, ...]) -> Arrangement | None:
        _, length, width = shape
        # Among grids that leave a believable number of prefix tokens, the best is one of the right
        # width, then the one that leaves as many as the model says it has.
        fits = [
            (channels != width, abs(length - height * across - self.prefix), height, across)
            for channels, height, across in self.maps
            if 0 <= length - height * across <= MOST_PREFIX_TOKENS
        ]
        if fits:
            _, _, height, across = min(fits)
            return Arrangement("tokens", width, length - height * across, (height, across))
        if self.maps:
            return None
        prefix = self.prefix or self.constant.get(length, 0)
        grid = self._grid_of(length - prefix)
        return None if grid is None else Arrangement("tokens", width, prefix, grid)

    def _grid_of(self, patches: int) -> tuple[int, int] | None:
        """Return the grid on which so many patches lie; None if it cannot be told."""
        if patches < 2:
            return None
        made = [grid for grid in self.grids if grid[0] * grid[1] == patches]
        if len(made) == 1:
            return made[0]
        # Without a convolution, patches are cut from images that they divide.
        tall, wide = self.sides
        across = [side for side in range(1, patches + 1) if patches % side == 0]
        exact = [(patches // side, side) for side in across if patches * wide == side * side * tall]
        return exact[0] if exact else None
