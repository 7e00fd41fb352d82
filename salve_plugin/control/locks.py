"""One lock a model: two threads that change its weights at once would lose some of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from salve_plugin.control.base import bare

# Weak, so that a lock keeps no model alive; and beside the model, not in it, since a lock can be
# neither copied nor pickled.
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_locks_lock = Lock()


@contextmanager
def locked(model: nn.Module) -> Iterator[nn.Module]:
    """Hold the one lock of a model while its weights and ledgers change; yield the bare model.

    Raises:
        InputError: if it is no model.
    """
    # By the bare model: however often it is attached or compiled, its weights are one set.
    network = bare(model)
    with _locks_lock:
        # Re-entrant, since what holds the lock calls functions that take it for themselves.
        lock = _locks.get(network) or _locks.setdefault(network, RLock())
    with lock:
        yield network
