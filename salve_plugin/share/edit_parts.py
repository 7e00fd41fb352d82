"""All that sharing asks of an edit: what of it travels, as JSON and as tensors, and the way back.

Nothing else here but the cards, which tell people what an edit does, looks into an edit's fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import check_direction
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.site import HEAD_INPUT, Site
from salve_plugin.store.digest import sha256_tensor
from salve_plugin.store.json import Json, shortened
from salve_plugin.store.record import Index, Notes, ParameterPath, Record, Sha256

Rows = Annotated[
    list[Index],
    Meta(min_length=1, max_length=1_000_000, extra_json_schema={"uniqueItems": True}),
]

FEATURES = frozenset({"scale"})
"""What a reader must know of edits."""


@dataclass(frozen=True)
class FingerprintFields(Record):
    """A tensor of the base: dtype, shape, and the SHA-256 of its elements, row-major."""

    dtype: Literal["bfloat16", "float16", "float32", "float64"]
    sha256: Sha256
    shape: Annotated[list[Index], Meta(min_length=1, max_length=8)]


@dataclass(frozen=True)
class BaseFields(Record):
    """The model that an edit was made for.

    Attributes:
        description: architecture, its arguments and the origin of the weights, as the adapter
            describes them: data for people and for building the model, never imported.
        tensors: every tensor that the edit writes, by its path in the model, before the edit.
    """

    description: Notes
    tensors: Annotated[dict[ParameterPath, FingerprintFields], Meta(min_length=1, max_length=256)]


@dataclass(frozen=True)
class EditFields(Record):
    """An edit but for its tensors.

    Attributes:
        base: the model that it was made for.
        dictionary_digest: identity of the dictionary that the direction is from.
        dtype: of the direction.
        latent: which atom of the dictionary.
        mode: the sign.
        operator: scale: column j of the touched rows is multiplied by max(0, 1 - strength |c_j|)
            (suppress) or max(0, 1 + strength |c_j|) (enhance), c being the tensor
            `edit.direction`, of unit norm.
        rows: the rows (classes) that are edited, ascending; null for all.
        site: the activation whose readers are edited.
        strength: in units of the direction.
    """

    base: BaseFields
    dictionary_digest: Sha256 | None
    dtype: Literal["float32", "float64"]
    latent: Index
    mode: Literal["enhance", "suppress"]
    operator: Literal["scale"]
    rows: Rows | None
    site: Site
    strength: Annotated[float, Meta(ge=0)]

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            InputError: if a row is named twice.
        """
        if self.rows is not None and len(set(self.rows)) < len(self.rows):
            raise InputError("a row is named twice; expected rows that differ from each other")


def edit_fields(edit: Edit) -> Json:
    """Return everything but the tensors as JSON."""
    return edit.to_json()


def edit_tensors(edit: Edit) -> dict[str, Tensor]:
    """Return the tensors that travel, by name."""
    return {"direction": edit.direction}


def edit_of(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    """Return the edit that has these fields and tensors.

    Raises:
        InputError: if they do not make one.
    """
    if set(tensors) != {"direction"}:
        raise InputError(f"an edit has the tensor 'direction'; found {shortened(sorted(tensors))}")
    check_direction(tensors["direction"])  # before `Edit` is made: run-time types come first there
    return Edit.from_parts(fields, tensors["direction"])


def required_features(edit: Edit) -> list[str]:
    """Return what a reader must know to use the edit."""
    return [str(edit.operator)]


def dictionary_digest(edit: Edit) -> str | None:
    """Return the identity of the dictionary that the edit comes from; None if from none."""
    return edit.dictionary_digest


def class_count(edit: Edit) -> int | None:
    """Return the number of classes, where the edit touches the classifier and so tells."""
    if edit.site.name != HEAD_INPUT:
        return None
    return min(fingerprint.shape[0] for fingerprint in edit.base.tensors.values())


def check_source(edit: Edit, dictionary: Dictionary) -> None:
    """Raise unless the edit is what the dictionary makes it: same site, direction one of its atoms.

    Raises:
        InputError: says what is another one.
    """
    if dictionary.digest != edit.dictionary_digest:
        raise InputError(
            f"the dictionary {dictionary.digest[:12]} is not the edit's "
            f"({str(edit.dictionary_digest)[:12]}); pass the one that the edit was made with"
        )
    ours, theirs = edit.site, dictionary.site
    if (ours.name, ours.width) != (theirs.name, theirs.width):
        raise InputError(
            f"the edit is at '{ours.name}' with {ours.width} features, its dictionary reads "
            f"'{theirs.name}' with {theirs.width}; make the edit with suppress or enhance"
        )
    if edit.latent >= dictionary.n_latents:
        raise InputError(
            f"the edit names latent {edit.latent}, its dictionary has {dictionary.n_latents}; make "
            "the edit with suppress or enhance"
        )
    atom = dictionary.atoms[edit.latent].detach().cpu().to(edit.direction.dtype)
    if not torch.equal(atom, edit.direction):
        raise InputError(
            f"the edit's direction is not atom {edit.latent} of its dictionary; make the edit with "
            "suppress or enhance, or leave out its dictionary"
        )


def check_pristine(edit: Edit, pristine: Mapping[str, Tensor]) -> None:
    """Raise unless these are the touched rows of the edit's base, by path, as far as it shows.

    Raises:
        InputError: names the path.
    """
    if set(pristine) != set(edit.base.tensors):
        raise InputError(
            f"pristine rows are given for {shortened(sorted(pristine), 300)}, the edit touches "
            f"{shortened(sorted(edit.base.tensors), 300)}"
        )
    for path, rows in pristine.items():
        base = edit.base.tensors[path]
        count = base.shape[0] if edit.rows is None else len(edit.rows)
        expected = (count, prod(base.shape[1:]))
        dtype = str(rows.dtype).removeprefix("torch.")
        if tuple(rows.shape) != expected or dtype != base.dtype:
            raise InputError(
                f"pristine rows of '{path}' are {dtype}{list(rows.shape)}, the edit's base needs "
                f"{base.dtype}{list(expected)}"
            )
        if not rows.isfinite().all():
            raise InputError(f"pristine rows of '{path}' hold NaN or infinite values")
        # Only whole weights have a digest to compare with; single rows are checked on restoring.
        if edit.rows is None and sha256_tensor(rows) != base.sha256:
            raise InputError(f"pristine rows of '{path}' are not the weight of the edit's base")
