"""How an activation is laid out, read off its shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from torch import nn

from salve_plugin.site import Layout

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
    """

    maps: tuple[tuple[int, int, int], ...]
    nhwc: bool
    prefix: int
    images: int
    sides: tuple[int, int] = (1, 1)

    @classmethod
    def of(
        cls, model: nn.Module, maps: list[tuple[int, int, int]], probe: Sequence[int]
    ) -> "Layouts":
        """Collect what the model says about itself; `probe` is the shape of the images."""
        prefix = getattr(model, "num_prefix_tokens", 0)
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        if not maps and isinstance(grid, tuple) and len(grid) == 2:
            maps = [(0, *grid)]
        nhwc = getattr(model, "output_fmt", "") == "NHWC"
        prefix = prefix if isinstance(prefix, int) else 0
        return cls(tuple(maps), nhwc, prefix, probe[0], (probe[-2], probe[-1]))

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
        return Arrangement("nhwc", c) if self.nhwc else Arrangement("nchw", a)

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
        side = isqrt(max(length - self.prefix, 0))
        if not self.maps and side > 1 and side * side == length - self.prefix:
            return Arrangement("tokens", width, self.prefix, (side, side))
        return None
