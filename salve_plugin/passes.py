"""Whose forward pass it is that a hook sees.

torch calls the hooks of a module in every thread that runs it, so a hook has to ask. A *pass* is
opened by whoever installs hooks for a while; they act in the context (the thread, the asyncio
task, what it starts with a copy of its context) that opened it, and nowhere else.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

Line = tuple["Pass", ...]
"""The passes that are open in a context, the outermost first."""


class Pass:
    """One span in which somebody reads or replaces activations.

    Attributes:
        line: the passes that were open around it where it was opened, and itself.
    """

    def __init__(self, outer: Line) -> None:
        """Open inside of `outer`."""
        self.line: Line = (*outer, self)


# A new thread starts with an empty context, so that it sees no pass of another; an asyncio task
# starts with a copy of the context that made it, so that it works for the passes open there.
_open: ContextVar[Line] = ContextVar("salve_passes", default=())


def open_passes() -> Line:
    """Return the passes that are open in the caller's context."""
    return _open.get()


@contextmanager
def opened() -> Iterator[Pass]:
    """Open a pass for the length of the context."""
    mine = Pass(_open.get())
    _open.set(mine.line)
    try:
        yield mine
    finally:
        # Not a reset to what was before: contexts that overlap may end in any order.
        _open.set(tuple(open_pass for open_pass in _open.get() if open_pass is not mine))


@contextmanager
def inside(line: Line) -> Iterator[None]:
    """Work on behalf of the passes of another thread."""
    before = _open.get()
    _open.set(line)
    try:
        yield
    finally:
        _open.set(before)


def lent(module: nn.Module) -> bool:
    """Say whether this thread runs `module` for a pass of another thread, without saying whose.

    DataParallel runs its replicas in new threads, and autograd runs what was checkpointed again in
    the device's thread, which is not one of Python's. Neither is told whose context it is.
    """
    if _open.get():
        return False  # it has passes of its own, so it knows for whom it works
    if getattr(module, "_is_replica", False):
        return True
    # A checkpointed segment runs its forward hooks once more, in the middle of a backward pass.
    in_backward = torch._C._current_graph_task_id() != -1
    return in_backward and isinstance(threading.current_thread(), threading._DummyThread)
