"""The plot on an artifact's card, the same bytes every time."""

from io import BytesIO
from typing import TYPE_CHECKING

from salve_plugin.validate.pictures import png_bytes

if TYPE_CHECKING:
    from salve_plugin.control.critical import AlphaCrit
    from salve_plugin.control.edit import Edit

ALPHA_CRIT = "alpha-crit"
"""Name of the picture in an artifact."""


def alpha_crit_picture(critical: "AlphaCrit", edit: "Edit") -> bytes:
    """Return `alpha_crit_figure` as a PNG, the same bytes every time.

    Args:
        critical: the critical strengths, of at least one image.
        edit: whose strength is marked.

    Raises:
        InputError: if there is no image.
    """
    # Only when a plot is drawn: to read an artifact needs no matplotlib.
    import matplotlib
    from PIL import Image

    from salve_plugin.faces.alpha_crit import alpha_crit_figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # what users configured must not change the bytes
        stream = BytesIO()
        alpha_crit_figure(critical, edit).savefig(stream, format="png")
    with Image.open(stream) as drawn:
        return png_bytes(drawn, colours=128)
