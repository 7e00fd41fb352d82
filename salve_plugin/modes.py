"""Eval mode for a while."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn


class _EvalSpan:
    """One context in which a model is in eval mode, and the modes to put back at its end."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [(module, module.training) for module in model.modules()]


_lock = threading.Lock()
_spans: WeakKeyDictionary[nn.Module, list[_EvalSpan]] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and each back into its own mode afterwards, on error too.

    If several threads do so with one model, it stays in eval mode until the last is through.
    """
    with _lock:
        span = _EvalSpan(model)
        spans = _spans.setdefault(model, [])
        spans.append(span)
    try:
        model.eval()
        yield
    finally:
        with _lock:
            later = spans.index(span) + 1
            if later < len(spans):
                # Another thread has found eval mode and would put that back: it takes over.
                spans[later].modes = span.modes
            else:
                for module, training in span.modes:
                    module.training = training
            spans.remove(span)
