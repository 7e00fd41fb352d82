"""What differs between two artifacts: fields of their manifests, and elements of their tensors.

Compared is what an artifact's `digest` is taken of, so artifacts of one digest do not differ, and
artifacts that do not differ have one digest. Pictures and the card are not part of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from salve_plugin.control.base import same_base
from salve_plugin.control.rows import same_bits
from salve_plugin.faces.one_line import one_line, shortened
from salve_plugin.share.edit_manifest import tensors_of
from salve_plugin.store.json import Json, dump, place_of
from salve_plugin.store.tensors import describe

if TYPE_CHECKING:
    from salve_plugin.share.artifact import EditArtifact


class Absent(Enum):
    """What stands for a field that one side does not have; null is a value like any other."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        """Return "(absent)", as it is shown to people."""
        return "(absent)"


ABSENT = Absent.ABSENT


@dataclass(frozen=True)
class FieldDifference:
    """A field of the manifest with two values.

    Attributes:
        path: names and list indices that lead to it.
        ours: its value in the artifact that was asked, or `ABSENT`.
        theirs: its value in the other one, or `ABSENT`.
    """

    __repr__ = one_line

    path: tuple[str | int, ...]
    ours: object
    theirs: object

    def to_json(self) -> Json:
        """Return plain JSON values; an absent side has no key."""
        sides = {"ours": self.ours, "theirs": self.theirs}
        present = {name: value for name, value in sides.items() if value is not ABSENT}
        return {"path": list(self.path), **present}

    def __str__(self) -> str:
        """Return the path and both values in one line."""
        pair = [repr(self.ours), repr(self.theirs)]
        same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False)))
        if same > 60:  # what would be shown of both is the same
            pair = [f"…{side[same - 20 :]}" for side in pair]
        ours, theirs = (shortened(side, 80) for side in pair)
        return f"{place_of(self.path)}: {ours} | {theirs}"


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not the same on both sides.

    Attributes:
        name: in `edit.safetensors`.
        ours: dtype and shape, such as "F32[10, 128]"; None if there is no such tensor.
        theirs: the same of the other artifact.
        elements: how many elements differ in their bits; None if dtype or shape does already.
        largest: the largest absolute difference, infinity included; None as for `elements`.
    """

    name: str
    ours: str | None
    theirs: str | None
    elements: int | None = None
    largest: float | None = None

    def to_json(self) -> Json:
        """Return plain JSON values; an infinite difference, which JSON lacks, is "infinity"."""
        return {**vars(self), "largest": "infinity" if self.largest == math.inf else self.largest}

    def __str__(self) -> str:
        """Return what differs in one line."""
        if self.elements is None:
            return f"{self.name}: {self.ours or '(absent)'} | {self.theirs or '(absent)'}"
        return (
            f"{self.name}: {self.elements} elements of {self.ours} differ, by at most "
            f"{self.largest:g}"
        )


@dataclass(frozen=True)
class Difference:
    """What differs between two artifacts; false if nothing does.

    Attributes:
        same_edit: whether both do the same to the same weights.
        same_base: whether both belong to one model, as far as can be told: its description and
            the weights that both touch.
        fields: of the manifests, in the order of their paths.
        tensors: by name.
    """

    __repr__ = one_line

    same_edit: bool
    same_base: bool
    fields: tuple[FieldDifference, ...] = ()
    tensors: tuple[TensorDifference, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anything differs."""
        return bool(self.fields or self.tensors)

    def to_json(self) -> Json:
        """Return plain JSON values."""
        return {
            "same_edit": self.same_edit,
            "same_base": self.same_base,
            "fields": [field.to_json() for field in self.fields],
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }

    def __str__(self) -> str:
        """Return what differs, one line each, ours on the left."""
        if not self:
            return "The artifacts do not differ."
        head = [
            f"{'The same' if self.same_edit else 'Another'} edit of "
            f"{'the same' if self.same_base else 'another'} base."
        ]
        return "\n".join([*head, *map(str, self.fields), *map(str, self.tensors)])


def difference(ours: "EditArtifact", theirs: "EditArtifact") -> Difference:
    """Compare two artifacts; see `Difference`."""
    return Difference(
        ours.edit == theirs.edit,
        same_base(ours.edit.base, theirs.edit.base),
        tuple(_fields(_said(ours), _said(theirs), ())),
        tuple(_tensors(tensors_of(ours), tensors_of(theirs))),
    )


def _said(artifact: "EditArtifact") -> Json:
    # The list of tensors follows from the tensors, which are compared themselves.
    return {name: value for name, value in artifact.manifest.items() if name != "tensors"}


def _fields(ours: object, theirs: object, path: tuple[str | int, ...]) -> Iterator[FieldDifference]:
    """Yield the innermost values that differ; numbers of another type do (1 is not 1.0)."""
    mine, other = _children(ours), _children(theirs)
    if mine is not None and other is not None and type(ours) is type(theirs):
        for key in [*mine, *(key for key in other if key not in mine)]:
            yield from _fields(mine.get(key, ABSENT), other.get(key, ABSENT), (*path, key))
    # As JSON: in Python 1, 1.0 and True are equal.
    elif ABSENT in (ours, theirs) or dump(ours) != dump(theirs):
        yield FieldDifference(path, ours, theirs)


def _children(value: object) -> Mapping[str | int, object] | None:
    if isinstance(value, dict):
        return dict(sorted(value.items()))
    return dict(enumerate(value)) if isinstance(value, list) else None


def _tensors(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> Iterator[TensorDifference]:
    for name in sorted({*ours, *theirs}):
        mine, other = (_kind(tensors, name) for tensors in (ours, theirs))
        if mine != other:
            yield TensorDifference(name, mine, other)
        elif not same_bits(ours[name], theirs[name]):
            yield TensorDifference(name, mine, other, *_distance(ours[name], theirs[name]))


def _kind(tensors: Mapping[str, Tensor], name: str) -> str | None:
    if name not in tensors:
        return None
    said = describe({name: tensors[name]})[name]
    return f"{said['dtype']}{said['shape']}"


def _distance(ours: Tensor, theirs: Tensor) -> tuple[int, float]:
    """Return how many elements differ in their bits, and the largest absolute difference."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.element_size()]
    pair = [tensor.detach().cpu().contiguous().reshape(-1) for tensor in (ours, theirs)]
    # By bits: -0 is not 0 here, and a NaN is itself.
    differs = pair[0].view(width) != pair[1].view(width)
    # Only where bits differ: infinity minus infinity would be NaN.
    gaps = (pair[0][differs].double() - pair[1][differs].double()).abs()
    return int(differs.sum()), float(gaps.nan_to_num(nan=math.inf, posinf=math.inf).max())
