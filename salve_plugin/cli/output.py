"""What every command prints: a table for people, or one JSON object on standard output."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

from salve_plugin.errors import SalveError, printable


def console(*, stderr: bool = False) -> "Console":
    """Return the console; progress and errors go to standard error, results to standard output."""
    from rich.console import Console

    console = Console(stderr=stderr, soft_wrap=stderr)
    # A pipe or a log has no width of its own; 80 columns would fold the tables.
    return console if console.is_terminal else Console(stderr=stderr, soft_wrap=stderr, width=140)


def show_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object; numbers that JSON does not have become null."""
    import sys

    sys.stdout.write(json.dumps(_finite(result), indent=1, sort_keys=True, allow_nan=False) + "\n")


def show_error(error: SalveError, *, as_json: bool) -> None:
    """Print an expected error: on standard error, or as one JSON object on standard output."""
    from rich.markup import escape

    if as_json:
        show_json({"error": type(error).__name__, "message": str(error)})
    else:
        shown = f"[bold red]{type(error).__name__}:[/] {escape(str(error))}"
        console(stderr=True).print(shown, highlight=False)


def show_note(text: str) -> None:
    """Print a line on standard error: something that people should know of a result."""
    _print(console(stderr=True), text)


def say(*lines: str, style: str | None = None) -> None:
    """Print lines on standard output, in a style of rich if one is given."""
    for line in lines:
        _print(console(), line, style)


def _print(to: "Console", line: str, style: str | None = None) -> None:
    # Paths and names are whoever's: nothing in them is markup to rich, which would end the command
    # at a "[/x]", or a sign that moves the cursor. Lines stay whole, so that a path can be copied.
    to.print(printable(line), style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as people read them: the sentence, without the line of code that it is from."""
    # How they look and not where they go: that stays the caller's, and the filters with it.
    before = warnings.formatwarning

    def sentence(message: Warning | str, *_: object, **__: object) -> str:
        return f"Note: {printable(str(message))}\n"

    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def saying_how_to_go_on() -> Iterator[None]:
    """Say in one line what an interrupted command, given again, does."""
    try:
        yield
    except KeyboardInterrupt as stop:
        # `record` notes how many images are kept, and which call to repeat: here it is the command.
        kept = " ".join(getattr(stop, "__notes__", ())).partition(": ")[0]
        said = f"Interrupted; {kept or 'what is done is kept'}. Repeat the command to go on."
        show_note(said)
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(child) for child in value]
    return value


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are aligned to the right, text is shown as it is and never obeyed."""
    from rich.table import Table

    table = Table(title=_shown(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(_shown(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(value) for value in row))
    console().print(table)


def _shown(value: object) -> "Text":
    """Return a value as text without markup; what an artifact says may hold some."""
    from rich.text import Text

    return Text(f"{value:.4g}" if isinstance(value, float) else printable(str(value)))
