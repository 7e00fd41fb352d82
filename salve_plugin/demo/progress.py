"""Progress of the demo: a line for every finished step, with its seconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Steps:
    """Prints each finished step; several processes may print side by side.

    Attributes:
        to_stderr: whether standard output is kept for the result.
    """

    to_stderr: bool = False

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step and print it at its end, in one write so that lines stay whole."""
        started = perf_counter()
        yield
        stream = sys.stderr if self.to_stderr else sys.stdout
        stream.write(f"{perf_counter() - started:6.1f} s  {name}\n")
        stream.flush()
