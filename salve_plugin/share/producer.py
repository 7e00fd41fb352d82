"""Who writes the files."""

from importlib.metadata import PackageNotFoundError, version


def producer() -> dict[str, object]:
    """Return this program's name and version, as files state them."""
    try:
        own = version("salve-plugin")
    except PackageNotFoundError:  # run from a source tree that is not installed
        own = "unknown"
    return {"name": "salve_plugin", "version": own}
