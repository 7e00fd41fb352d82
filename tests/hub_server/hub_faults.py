"""Faults that tests order, and the log of all requests.

A fault waits for requests whose method and path match, lets the first `after` of them pass, and
then hits `times` of them. What it does (`do`):

- status: answers `arg` with `code` as `X-Error-Code` and with `headers` (`Retry-After` for a rate
  limit), instead of serving the request or (`when="after"`) although it took effect.
- drop: closes the connection before the request takes effect.
- lost: the request takes effect, then the connection is closed without an answer.
- delay: waits `arg` seconds, before the request takes effect or (`when="after"`) after it.
- kill: the server process dies; before it has read more than `arg` bytes of the body, or
  (`when="after"`) after the request took effect and before its answer.
- truncate: announces the whole body, sends `arg` bytes of it and closes the connection (answers
  of 200 and 206 only; so the next two).
- short: sends `arg` bytes of the body and announces just those.
- flip: inverts the byte at `arg`.
- json: answers as usual, with `body` in place of the body, and with `headers`.
- norange: ignores the `Range` header and sends the whole file.
"""

import re
import threading
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal[
    "status", "drop", "lost", "delay", "kill", "truncate", "short", "flip", "json", "norange"
]
When = Literal["before", "after"]

BODY_KINDS = ("truncate", "short", "flip", "json")
"""Faults of bodies: an answer to HEAD has none, such a fault waits for a request that has one."""


@dataclass(frozen=True)
class Fault:
    """What a test ordered; see the module's documentation."""

    do: Kind
    path: str
    method: str = ".*"
    times: int = 1
    after: int = 0
    arg: float = 0
    when: When = "before"
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""

    def matches(self, method: str, path: str) -> bool:
        """Return whether the fault is meant for such a request."""
        if method == "HEAD" and self.do in BODY_KINDS:
            return False
        return bool(re.fullmatch(self.method, method) and re.search(self.path, path))


@dataclass
class _Waiting:
    fault: Fault
    to_pass: int
    to_hit: int


class Faults:
    """The faults that are still to come; each request takes at most one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(_Waiting(fault, fault.after, fault.times))

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault that hits this request and count it down."""
        with self._lock:
            for waiting in self._waiting:
                if waiting.to_hit <= 0 or not waiting.fault.matches(method, path):
                    continue
                if waiting.to_pass > 0:
                    waiting.to_pass -= 1
                    continue
                waiting.to_hit -= 1
                return waiting.fault
        return None


@dataclass(frozen=True)
class Logged:
    """A request as the server saw it."""

    method: str
    path: str
    """With the query, as sent."""
    status: int
    """What was answered; 0 when a fault closed the connection instead."""
    authorization: str
    host: str
    range: str


class Log:
    """All requests since the start of the process, in the order in which they were answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Logged] = []

    def add(self, request: Logged) -> None:
        with self._lock:
            self._requests.append(request)

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    def as_json(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(request) for request in self._requests]
