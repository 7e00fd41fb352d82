"""A recipe as a file, as the edit bench of an atlas writes it: an edit's tensors and its fields."""

import os
from typing import Any

from torch import Tensor

from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.store.files import read_plain, usable
from salve_plugin.store.json import parse_json
from salve_plugin.store.tensors import MAX_HEADER_BYTES, MAX_TENSOR_FILE_BYTES, decode_noted

NOTE = "recipe"
"""Key of the metadata under which the fields lie."""


def read_recipe(
    recipe: str | os.PathLike[str] | bytes | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `Edit.from_json` takes.

    Args:
        recipe: the file, or its bytes.

    Raises:
        InputError: if it is None, as that of a widget without an edit is.
        MissingFileError: if there is no such file.
        ArtifactError: if it is no recipe, or corrupt.
    """
    if recipe is None:
        raise InputError(
            "the recipe is None, a file or its bytes were expected: a widget has one as soon as "
            "its edit bench shows an edit"
        )
    if isinstance(recipe, bytes):
        name, data = "the recipe", recipe
    else:
        path = usable(recipe)
        name, data = str(path), read_plain(path, MAX_TENSOR_FILE_BYTES)
    notes, tensors = decode_noted(data, name)
    if set(notes) != {NOTE}:
        raise ArtifactError(
            f"{name} has the metadata {sorted(notes)[:5]}, a recipe has '{NOTE}': pass a file that "
            "the edit bench of an atlas wrote"
        )
    # It lies in the header of the tensors, so that the limit is that of a header.
    fields = parse_json(notes[NOTE].encode(), f"{name}'s '{NOTE}'", max_bytes=MAX_HEADER_BYTES)
    return dict(fields), tensors
