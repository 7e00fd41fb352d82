"""The patch grid of the forward pass that is explained, which is not always the one of `attach`.

A transformer that takes images of any size may be shown another aspect ratio with as many patches:
its tokens then fit the known grid, and lie elsewhere. So the grid is taken from the pass itself:
from the positions of the patches where the model was given them, else from the convolutions that
ran, whose maps show their two sides, else from the shape of the images.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from salve_plugin.errors import AttributionError, InputError
from salve_plugin.taps import tapping
from salve_plugin.validate.layout import Tokens

Grid = tuple[int, int]


@contextmanager
def watching_grids(models: Iterable[nn.Module]) -> Iterator[set[Grid]]:
    """Collect the (height, width) of all maps that the models' convolutions make."""
    grids: set[Grid] = set()

    def note(activation: Tensor) -> None:
        if activation.ndim == 4:
            grids.add((activation.shape[2], activation.shape[3]))

    convolutions = {
        id(module): module
        for model in models
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    }
    with ExitStack() as stack:
        for module in convolutions.values():
            stack.enter_context(tapping([module], "out", note))
        yield grids


def grid_of_call(
    tokens: Tokens, length: int, inputs: Sequence[object], grids: set[Grid], *, given: bool
) -> Tokens:
    """Return the layout of a layer in the pass that was run.

    Args:
        tokens: the layout that is known; only that of tokens may have changed.
        length: of the layer's second axis, the prefix included.
        inputs: of the forward pass.
        grids: what `watching_grids` collected.
        given: whether the caller has named the grid, so that another one is an error.

    Raises:
        InputError: if the named grid is not that of the pass.
        AttributionError: if the images have several grids, or nothing shows which it is.
    """
    if tokens is None or tokens == "NHWC":
        return tokens
    prefix, known = tokens
    patches = length - prefix
    grid = _by_coordinates(inputs, patches) or _by_maps(inputs, grids, patches, known)
    if grid == known:
        return tokens
    if given:
        # A layout of another length is refused where the layer is read.
        if grid is None or math.prod(known) != patches:
            return tokens
        raise InputError(
            f"tokens={tokens!r}, but the patches of these inputs lie on a grid of {grid[0]} x "
            f"{grid[1]}; pass tokens=({prefix}, {grid!r})"
        )
    if grid is None:
        raise AttributionError(
            f"the grid of the {patches} patches cannot be told from these inputs; pass images "
            f"(batch, channels, height, width), or layer=(module, 'out') with tokens=({prefix}, "
            "(height, width))"
        )
    return prefix, grid


def _by_coordinates(inputs: Sequence[object], patches: int) -> Grid | None:
    """Return the grid from (row, column) of each patch, as NaFlex models take them."""
    for value in inputs:
        if not isinstance(value, Tensor) or value.is_floating_point():
            continue
        if value.ndim != 3 or tuple(value.shape[1:]) != (patches, 2):
            continue
        rows, columns = (value.amax((0, 1)) + 1).tolist()
        # Patch number i must lie at row i // columns: else the tokens are in another order, or
        # padded.
        numbers = value[..., 0] * columns + value[..., 1]
        if rows * columns != patches or not bool(
            (numbers == numbers.new_tensor(range(patches))).all()
        ):
            raise AttributionError(
                f"the {patches} patches of these images do not fill one grid of {rows} x "
                f"{columns} row by row; explain images of one size at a time, without padding"
            )
        return rows, columns
    return None


def _by_maps(inputs: Sequence[object], grids: set[Grid], patches: int, known: Grid) -> Grid | None:
    # The patch embedding's own map is among them; others of as many cells are rare.
    fitting = {grid for grid in grids if math.prod(grid) == patches}
    if len(fitting) == 1:
        return next(iter(fitting))
    images = next((x for x in inputs if isinstance(x, Tensor) and x.ndim == 4), None)
    if images is None:
        return known if known in fitting else None
    height, width = images.shape[2], images.shape[3]

    def stretch(grid: Grid) -> float:
        """How much higher a patch is than wide, or the other way round."""
        return abs(math.log(height * grid[1] / (width * grid[0])))

    sides = [side for side in range(1, patches + 1) if patches % side == 0]
    grid = min(fitting or [(side, patches // side) for side in sides], key=stretch, default=None)
    # Images are cut or padded to whole patches, so that the ratio is right to one of them.
    if grid is None or stretch(grid) > math.log1p(1 / min(grid)):
        return known if math.prod(known) == patches and not fitting else None
    return grid
