"""Tables of values, as text for a terminal and as HTML for a notebook, with the same numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from salve_plugin.errors import printable

MOST_ROWS = 20

_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]\d+)?( %)?|∞")

_CELL = "padding:.15em .8em;vertical-align:top;text-align:"


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head, with a title and notes.

    Attributes:
        title: one line; empty for none.
        head: of each column.
        rows: of cells, each a number, a text, a truth value or None.
        notes: sentences below the table.
        most: rows that are shown; how many more there are is said.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    notes: tuple[str, ...] = ()
    most: int = MOST_ROWS

    def text(self) -> str:
        """Return the table with aligned columns; numbers stand at the right."""
        # Only rows that are shown decide how wide a column is.
        lines = [self.head, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self._numeric(), strict=True)
            ).rstrip()
            for line in lines
        ]
        if not any(self.head):
            aligned = aligned[1:]
        title = [printable(self.title)] if self.title else []
        notes = ["", *map(printable, self._notes())] if self._notes() else []
        return "\n".join([*title, *aligned, *notes])

    def html(self) -> str:
        """Return the table as HTML in the colours of the page that it stands in.

        Whatever a value says is shown as it is: names of classes come from folders, and what an
        artifact says from anybody.
        """
        sides = ["right" if right else "left" for right in self._numeric()]
        lines = "".join(f"<tr>{_html_cells('td', line, sides)}</tr>" for line in self._cells())
        caption = (
            f'<caption style="text-align:left;font-weight:bold">{_html(self.title)}</caption>'
            if self.title
            else ""
        )
        head = (
            f'<thead style="border-bottom:1px solid currentColor">'
            f"<tr>{_html_cells('th', self.head, sides)}</tr></thead>"
            if any(self.head)
            else ""
        )
        notes = "".join(f"<div>{_html(note)}</div>" for note in self._notes())
        # No colour of our own, lest it vanish on a dark page.
        return (
            f'<div><table style="border-collapse:collapse">{caption}'
            f"{head}<tbody>{lines}</tbody></table>{notes}</div>"
        )

    def _cells(self) -> list[tuple[str, ...]]:
        return [tuple(printable(shown(cell)) for cell in row) for row in self.rows[: self.most]]

    def _numeric(self) -> list[bool]:
        """Return which columns hold more numbers than texts, as they are printed."""
        columns = zip(*self._cells(), strict=True) if self.rows else ((),) * len(self.head)
        filled = [[cell for cell in column if cell not in ("", "-")] for column in columns]
        numbers = [sum(bool(_NUMBER.fullmatch(cell)) for cell in column) for column in filled]
        return [2 * n > len(column) for n, column in zip(numbers, filled, strict=True)]

    def _notes(self) -> tuple[str, ...]:
        more = len(self.rows) - self.most
        return (*((f"and {more} more",) if more > 0 else ()), *self.notes)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text, with the columns below one another."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


class Tabular:
    """A value that prints as a table, and shows itself as one in a notebook."""

    def as_table(self) -> Table:
        """Return the value as a table."""
        raise NotImplementedError

    def __str__(self) -> str:
        """Return the table as text."""
        return self.as_table().text()

    def _repr_html_(self) -> str:
        """Return the table as HTML, which notebooks show."""
        return self.as_table().html()


def shown(cell: object) -> str:
    """Return a cell as it is printed.

    >>> [shown(cell) for cell in (0.123456, float("inf"), None, True, 12, "tabby")]
    ['0.1235', '∞', '-', 'yes', '12', 'tabby']
    """
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        if cell != cell:
            return "-"
        # `z`: what rounds to zero is no "-0".
        return f"{cell:z.4g}".replace("inf", "∞")
    return "-" if cell is None else str(cell)


def percent(share: float) -> str:
    """Return a share in per cent.

    >>> percent(0.1234)
    '12.3 %'
    """
    return "-" if share != share else f"{100 * share:z.1f} %"


def _html(text: str) -> str:
    return escape(printable(text), quote=True)


def _html_cells(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    return "".join(
        f'<{tag} style="{_CELL}{side}">{_html(cell)}</{tag}>'
        for cell, side in zip(cells, sides, strict=True)
    )
