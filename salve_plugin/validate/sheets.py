"""Sheets of pictures: tiles in rows, a caption under each, and the colours' scale at the side.

Every picture of images and heat maps that the package makes is drawn here; matplotlib is imported
only then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from salve_plugin.validate.pictures import PALETTE, Scale, overlay, png_bytes, stretched

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

SIDE = 320
"""Pixels of a tile's shorter side."""
GAP, LINE, BAR = 12, 17, 118
"""Pixels between tiles, of a line of text, and of the column with the colours' scale."""
_DPI, _POINTS = 100, 8.5
_LETTER = 6.6
"""Pixels of a letter, for breaking captions: most are narrower, so lines come out short."""


@dataclass(frozen=True)
class Tile:
    """A picture and what is written under it, at most two lines."""

    picture: "Image"
    caption: str


def beside(
    image: Float[Tensor, "channels height width"],
    heat: Float[Tensor, "*one h w"],
    scale: Scale,
    captions: tuple[str, str],
) -> list[Tile]:
    """Return two tiles: the image, and the heat map over it in the colours of the scale.

    Raises:
        InputError: as for `overlay`.
    """
    size = _size(image.shape[-1], image.shape[-2])
    # Drawn at the size in which it is shown: a map of 7 x 7 is as smooth as the image is sharp.
    over = overlay(image, heat, size=size[::-1], signed=scale.signed, limit=scale.limit)
    return [Tile(stretched(image), captions[0]), Tile(over, captions[1])]


def sheet(
    tiles: Sequence[Tile | None],
    *,
    columns: int,
    scale: Scale | None = None,
    unit: str = "",
    colours: int | None = None,
) -> bytes:
    """Return a PNG with the tiles in rows, the same bytes every time.

    Args:
        tiles: all are shown in the size of the first, its shorter side `SIDE` pixels; where
            there is None, the place stays empty.
        columns: how many stand in a row.
        scale: of the colours of all maps on the sheet, drawn beside the first row; None if there
            is no map.
        unit: what the scale's numbers are.
        colours: size of a palette to reduce it to: half of the bytes, but steps.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    first, *_ = filter(None, tiles)
    tile_width, tile_height = _size(*first.picture.size)
    captions = [_lines(tile.caption if tile else "", tile_width) for tile in tiles]
    text_height = LINE * max(len(lines) for lines in captions)
    across, down = tile_width + GAP, tile_height + text_height + GAP
    width, height = GAP + columns * across + (BAR if scale else 0), GAP + rows * down
    canvas = Image.new("RGB", (width, height), "white")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # what users configured must not change the bytes
        figure = Figure((width / _DPI, height / _DPI), _DPI)
        FigureCanvasAgg(figure)
        for number, lines in enumerate(captions):
            left, top = GAP + number % columns * across, GAP + number // columns * down
            figure.text(
                left / width, 1 - (top + tile_height + 3) / height, "\n".join(lines),
                fontsize=_POINTS, va="top", linespacing=1.15, parse_math=False, color="#222222",
            )  # fmt: skip
        if scale:
            left = GAP + columns * across
            box = (left / width, 1 - (GAP + tile_height) / height, 14 / width, tile_height / height)
            _draw_scale(figure, box, scale, unit)
        stream = BytesIO()
        figure.savefig(stream, format="png")
    with Image.open(stream) as drawn:
        canvas.paste(drawn.convert("RGB"))
    for number, tile in enumerate(tiles):  # pasted, not drawn, so that no pixel is interpolated
        if tile is None:
            continue
        place = GAP + number % columns * across, GAP + number // columns * down
        resized = tile.picture.convert("RGB").resize(
            (tile_width, tile_height), Image.Resampling.BICUBIC
        )
        canvas.paste(resized, place)
    return png_bytes(canvas, colours=colours)


def _draw_scale(
    figure: "Figure", box: tuple[float, float, float, float], scale: Scale, unit: str
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    limit = scale.limit or 1.0
    mapped = ScalarMappable(Normalize(-limit if scale.signed else 0, limit), PALETTE)
    bar = figure.colorbar(mapped, cax=figure.add_axes(box), ticks=MaxNLocator(6))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_POINTS - 0.5)
    bar.set_label(unit, fontsize=_POINTS - 0.5)


def _size(width: int, height: int) -> tuple[int, int]:
    """Return the width and height of a tile whose picture has these."""
    shorter = min(width, height)
    return round(SIDE * width / shorter), round(SIDE * height / shorter)


def _lines(caption: str, width: int) -> list[str]:
    """Return a caption in at most two lines of letters that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    drawable = "".join(letter if font.get_char_index(ord(letter)) else "?" for letter in caption)
    return wrap(drawable, int(width / _LETTER), max_lines=2, placeholder=" …") or [""]
