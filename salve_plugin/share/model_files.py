"""The files of an edited model beside its artifact: whose they are, and which of them stay."""

from collections.abc import Mapping
from typing import Any

from salve_plugin.errors import InputError
from salve_plugin.store.json import Json
from salve_plugin.store.place import Existing

MODEL_FILES = ("config.json", "model.safetensors")
"""The whole edited model in timm's layout, which may lie beside the artifact."""

Previous = Mapping[str, Any] | None
"""The manifest of the artifact that is there, if there is a valid one."""


def kept_model(existing: Existing, previous: Previous, digest: str) -> Mapping[str, Json] | None:
    """Return the entries of an edited model that is there, if it has this very edit."""
    if previous is None or previous["merged"] is None or digest != previous["digest"]:
        return None
    merged: Mapping[str, Json] = previous["merged"]
    # If it was changed since, it is somebody's own, and no longer listed.
    return merged if all(existing.holds(name, entry) for name, entry in merged.items()) else None


def own_files(existing: Existing, previous: Previous, kept: set[str]) -> list[str]:
    """Return the files of an older artifact that nobody changed since, but for those to keep."""
    if previous is None:
        return []
    own = [name for name, entry in previous["files"].items() if existing.holds(name, entry)]
    # A model that somebody trained further needs the configuration that came with it.
    merged = previous["merged"] or {}
    own += merged if all(existing.holds(name, entry) for name, entry in merged.items()) else []
    return [name for name in own if name not in kept]


def check_room(existing: Existing, previous: Previous, merged: Mapping[str, Json]) -> None:
    """Raise if the edited model would replace somebody's own: training may have gone into it.

    Raises:
        InputError: names the file.
    """
    listed = (previous or {}).get("merged") or {}
    for name, entry in merged.items():
        # The artifact's own bytes may be replaced, and bytes that are those to be written anyway.
        ours = [known for known in (listed.get(name), entry) if known is not None]
        if existing.has(name) and not any(existing.holds(name, known) for known in ours):
            raise InputError(
                f"there is another {name} already, which is not that of the artifact there; "
                "nothing was written. Choose another place, or move that model away"
            )
