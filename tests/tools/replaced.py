"""Manifests in which any one value is exchanged for any other, and everything sealed anew."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from salve_plugin.errors import SalveError

Path = tuple[Any, ...]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**60) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value: object, path: Path = ()) -> list[Path]:
    """Return the paths of all values inside a JSON value."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    inner = [found for key, item in items for found in places(item, (*path, key))]
    return [path, *inner] if path else inner


def owner(value: Any, path: Path) -> Any:
    """Return the object or list that has what a path leads to."""
    for key in path[:-1]:
        value = value[key]
    return value


def accepted(
    data: st.DataObject,
    manifest: bytes,
    seal: Callable[[dict[str, Any]], bytes],
    read: Callable[[bytes], object],
) -> Path | None:
    """Exchange a value of a manifest, seal and read it; return its path if that was accepted.

    Args:
        data: draws the place and the value.
        manifest: a right one.
        seal: writes a manifest with every digest that an attacker controls right, or raises where
            there can be no such thing.
        read: raises SalveError for what is refused; any other error is a failure of the test.

    Returns:
        None if the manifest was refused, or the value is what it was before.
    """
    config = json.loads(manifest)
    path = data.draw(st.sampled_from(places(config)))
    place = owner(config, path)
    before, place[path[-1]] = place[path[-1]], data.draw(VALUES)
    if place[path[-1]] == before:
        return None
    try:
        changed = seal(config)
    except (ValueError, LookupError, TypeError, AttributeError):
        # No place for a seal, or not even JSON: NaN and the like, as a careless program writes it.
        changed = json.dumps(config).encode(errors="surrogatepass")
    try:
        read(changed)
    except SalveError:
        return None
    return path
