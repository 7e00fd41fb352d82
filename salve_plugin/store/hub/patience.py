"""Requests that may be repeated without harm are repeated a few times before giving up."""

import time
from collections.abc import Callable
from typing import TypeVar

from salve_plugin.errors import HubError
from salve_plugin.store.hub.failures import TRANSIENT, translated

WAITS = (0.5, 2.0)
"""Seconds before the second and the third attempt, if the Hub does not name others."""
MAX_WAIT = 30.0

Result = TypeVar("Result")


def patiently(doing: str, request: Callable[[], Result]) -> Result:
    """Return what a harmless request returns, after up to three attempts.

    Raises:
        HubError: if it was refused, or all attempts failed.
    """
    for attempt in range(len(WAITS)):
        try:
            with translated(doing):
                return request()
        except HubError as error:
            if error.reason not in TRANSIENT:
                raise
            pause(error, attempt)
    with translated(doing):
        return request()


def pause(error: HubError, attempt: int) -> None:
    """Wait before the next attempt, as long as the Hub asks for if that is not too long."""
    headers = getattr(getattr(error.__cause__, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    # The header may hold a date as well, which counts as nothing said.
    wait = float(asked) if asked.isdecimal() else WAITS[attempt]
    time.sleep(min(wait, MAX_WAIT))
