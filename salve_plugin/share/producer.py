"""Who writes the files."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


def producer() -> dict[str, object]:
    """Return this program's name and version, as files state them."""
    return {"name": "salve_plugin", "version": _own_version()}


@cache
def _own_version() -> str:
    try:
        return version("salve-plugin")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
