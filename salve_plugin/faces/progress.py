"""A progress bar that leaves one line behind: in a terminal, in a log, and in a saved notebook."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol, runtime_checkable

WIDTH = 30
"""Characters of a notebook's bar."""

EVERY = 0.5
"""Seconds between two changes of a notebook's line."""


@runtime_checkable
class Update(Protocol):
    """What a bar is told."""

    def __call__(self, done: int, note: str = "", *, total: int | None = None) -> None:
        """Take how much is done, a few words on how it stands, and the total once it is known."""


@contextmanager
def bar(what: str, total: int | None, show: bool) -> Iterator[Update]:
    """Show how far something is; yield what to call with how much of it is done.

    Args:
        what: is being done, in one word.
        total: of what is to be done; None if nobody knows.
        show: False shows nothing.
    """
    if not show:
        yield lambda done, note="", total=None: None
        return
    # Not by what standard error is: a notebook's is no terminal, and neither is a log.
    with _notebook_line(what, total) if _in_notebook() else _drawn(what, total) as update:
        yield update


@contextmanager
def _drawn(what: str, total: int | None) -> Iterator[Update]:
    """Draw on standard error; where that is no terminal, rich writes the last line only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=total, note="")

        def update(done: int, note: str = "", *, total: int | None = None) -> None:
            shown.update(task, completed=done, note=note, total=total)

        yield update


@contextmanager
def _notebook_line(what: str, total: int | None) -> Iterator[Update]:
    """Display one line of text and change it in place.

    A widget is not saved with a notebook, and after carriage returns all that they overwrote is:
    what is displayed under an identifier is replaced, in the file too.
    """
    import IPython.display

    display: Callable[..., Any] = IPython.display.display  # untyped, and not always installed
    start = shown_at = monotonic()
    text = line_of(what, 0, total, "", 0.0)
    handle = display({"text/plain": text}, raw=True, display_id=True)

    def update(done: int, note: str = "", *, total: int | None = total) -> None:
        nonlocal text, shown_at
        now = monotonic()
        text = line_of(what, done, total, note, now - start)
        if now - shown_at >= EVERY:
            handle.update({"text/plain": text}, raw=True)
            shown_at = now

    try:
        yield update
    finally:
        handle.update({"text/plain": text}, raw=True)


def line_of(what: str, done: int, total: int | None, note: str, seconds: float) -> str:
    """Return the line of a notebook.

    >>> line_of("recording batches", 4, 8, "", 1.25)
    'recording batches ━━━━━━━━━━━━━━━                4/8 in 1.2 s'
    >>> line_of("recording batches", 4, None, "", 1.25)
    'recording batches 4 in 1.2 s'
    """
    filled = round(WIDTH * min(1.0, done / total)) if total else 0
    drawn = f"{'━' * filled}{' ' * (WIDTH - filled)} " if total else ""
    counted = f"{done}/{total}" if total else str(done)
    return f"{what} {drawn}{counted} in {seconds:.1f} s  {note}".rstrip()


def _in_notebook() -> bool:
    """Tell whether a Jupyter kernel runs this; a plain IPython terminal is a terminal."""
    ipython = sys.modules.get("IPython")  # where nobody has imported it, there is none
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
