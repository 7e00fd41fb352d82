"""Who writes the files."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from salve_plugin.store.record import Record, Text


@dataclass(frozen=True)
class Producer(Record):
    """The program that wrote a manifest."""

    name: Text
    version: Text


def producer() -> dict[str, object]:
    """Return this program's name and version, as files state them."""
    return {"name": "salve_plugin", "version": _own_version()}


@cache
def _own_version() -> str:
    try:
        return version("salve-plugin")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
