"""A figure that shows itself in a notebook and writes itself whole.

Import it only to draw: it loads matplotlib.
"""

import os
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from salve_plugin.errors import InputError
from salve_plugin.store.files import write_atomically

DPI = 150
SEQUENTIAL = "cividis"
"""From dark to bright in even steps, so that it can be read in grey and by the colour-blind."""
_NAME_LENGTH = 18


class Drawing(Figure):
    """A matplotlib figure without pyplot: nothing keeps it alive, and no backend is chosen."""

    def _repr_png_(self) -> bytes:
        """Return the figure as notebooks show it.

        They know how to show figures only once pyplot has been imported, which ours are not made
        by.
        """
        return self._bytes("png")

    def written(self, path: str | os.PathLike[str] | None) -> "Drawing":
        """Write the figure to a path, if there is one, in the format of its suffix; return it.

        Raises:
            InputError: if matplotlib does not know the format.
            WriteError: if the file cannot be written.
        """
        if path is not None:
            target = Path(path)
            try:
                content = self._bytes(target.suffix.removeprefix(".").lower() or "png")
            except ValueError as error:
                raise InputError(f"cannot draw {target}: {error}") from error
            write_atomically(target, content)
        return self

    def _bytes(self, kind: str) -> bytes:
        stream = BytesIO()
        self.savefig(stream, format=kind, dpi=DPI)
        return stream.getvalue()


def label(name: str) -> str:
    """Return a name as a short label, of which matplotlib takes nothing for a formula."""
    name = " ".join(name.split())
    short = name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
    return short.replace("$", r"\$")
