"""Which edits are on a model, and which of them meet on the same rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import acos, degrees
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from salve_plugin.control.edit import Edit
from salve_plugin.control.edited import touched_rows
from salve_plugin.control.formula import Ledger
from salve_plugin.control.ledger import ATTRIBUTE
from salve_plugin.control.locks import locked
from salve_plugin.control.operators import Gate, LowRankMap
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import Rows, common_rows
from salve_plugin.control.saved import is_saved_with
from salve_plugin.errors import InputError

Meeting = Literal["factors multiply", "changes add", "shared subspace"]
"""What it means that two edits are on the same rows: gates multiply; changes of low rank add, each
computed from the pristine weight; two maps whose subspaces overlap change the shared part twice, as
the angle says (`salve_plugin.joint_map` makes one map of both that does not)."""


@dataclass(frozen=True)
class AppliedEdit:
    """An edit that is on the model, and the parameters that it touches."""

    edit: Edit
    tensors: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "digest": self.edit.digest,
            "kind": self.edit.kind,
            "amount": self.edit.amount,
            "latents": list(self.edit.latents),
            "rows": None if self.edit.rows is None else list(self.edit.rows),
            "tensors": list(self.tensors),
        }


@runtime_checkable
class CarriesEdit(Protocol):
    """What `status` needs of an artifact."""

    @property
    def edit(self) -> Edit:
        """The edit."""

    @property
    def pristine(self) -> Mapping[str, Tensor] | None:
        """By parameter path, the rows that it touches, without it; None if not carried."""


@dataclass(frozen=True)
class Overlap:
    """Two edits of the same rows of the same parameter; None means all rows.

    Attributes:
        meeting: what their meeting means.
        angle: the smallest angle between the subspaces that two low-rank maps read, in degrees: 90
            if they share nothing, 0 if a direction is changed twice; None for other forms.
    """

    first: Edit
    second: Edit
    tensor: str
    rows: Rows
    meeting: Meeting
    angle: float | None


@dataclass(frozen=True)
class Status:
    """What is applied to a model.

    Attributes:
        applied: in order of application.
        overlaps: pairs of edits that meet on the same rows of the same parameter.
        saved: edits of the given artifacts that the model was saved with: it knows nothing of them,
            but its parameters are, bit for bit, what the edit makes of the pristine rows.
    """

    applied: tuple[AppliedEdit, ...]
    overlaps: tuple[Overlap, ...]
    saved: tuple[AppliedEdit, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values; edits are named by their digests."""
        return {
            "applied": [entry.to_json() for entry in self.applied],
            "saved": [entry.to_json() for entry in self.saved],
            "overlaps": [
                {
                    "first": overlap.first.digest,
                    "second": overlap.second.digest,
                    "tensor": overlap.tensor,
                    "rows": None if overlap.rows is None else list(overlap.rows),
                    "meeting": overlap.meeting,
                    "angle": overlap.angle,
                }
                for overlap in self.overlaps
            ],
        }


def status(model: nn.Module, artifacts: Iterable[CarriesEdit] = ()) -> Status:
    """Return what is applied to `model`, in order, and which edits overlap.

    Args:
        model: bare or hooked.
        artifacts: edits with pristine rows (`salve.EditArtifact`) that the model may have been
            saved with, each alone on its parameters.

    Raises:
        InputError: if this is no model, or something else than artifacts is given.
    """
    artifacts = _carriers(artifacts)
    tensors: dict[Edit, list[str]] = {}
    overlaps: list[Overlap] = []
    with locked(model) as network:
        for path, ledger in _ledgers(network):
            edits = [edit for edit in ledger.edits if isinstance(edit, Edit)]
            for edit in edits:
                tensors.setdefault(edit, []).append(path)
            overlaps += overlaps_on(path, edits)
    applied = tuple(AppliedEdit(edit, tuple(paths)) for edit, paths in tensors.items())
    saved = tuple(
        AppliedEdit(each.edit, tuple(each.edit.base.tensors))
        for each in artifacts
        if each.edit not in tensors
        and each.pristine is not None
        and is_saved_with(model, each.edit, each.pristine)
    )
    return Status(applied, tuple(overlaps), saved)


def _carriers(artifacts: object) -> tuple[CarriesEdit, ...]:
    several = tuple(artifacts) if isinstance(artifacts, Iterable) else (artifacts,)
    if not all(isinstance(artifact, CarriesEdit) for artifact in several):
        raise InputError(f"a list of EditArtifacts was expected; got {artifacts!r:.200}")
    return several


def _ledgers(model: nn.Module) -> Iterator[tuple[str, Ledger]]:
    """Yield every ledger once a parameter, with the parameter's first name."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for own, ledger in module.__dict__.get(ATTRIBUTE, {}).items():
            parameter = module._parameters.get(own)  # None if it was parametrized since
            key = id(ledger) if parameter is None else id(parameter)
            if key not in seen:
                seen.add(key)
                yield f"{name}.{own}" if name else own, ledger


def overlaps_on(tensor: str, edits: Sequence[Edit]) -> Iterator[Overlap]:
    """Yield the pairs of edits of one parameter that change the same rows of it."""
    for first, second in combinations(edits, 2):
        rows = common_rows(_rows_of(first, tensor), _rows_of(second, tensor))
        if rows is None or rows:
            yield Overlap(first, second, tensor, rows, *_meeting(first, second))


def _rows_of(edit: Recipe, tensor: str) -> Rows:
    # An untied or copied parameter has a path that no target knows; then any row may be meant.
    return touched_rows(edit, tensor) if tensor in edit.base.tensors else None


def _meeting(first: Recipe, second: Recipe) -> tuple[Meeting, float | None]:
    one, other = first.operator, second.operator
    if isinstance(one, Gate) and isinstance(other, Gate):
        return "factors multiply", None
    if not (isinstance(one, LowRankMap) and isinstance(other, LowRankMap)):
        return "changes add", None
    if first.site.name != second.site.name:
        return "changes add", None
    cosine = _largest_cosine(one, other)
    # Rounding may lift the cosine of equal subspaces above 1, where acos ends.
    angle = degrees(acos(min(1.0, cosine)))
    # Directions that come from float32 are orthogonal to some 1e-7 at best: below 1e-6 nothing is
    # shared.
    return ("shared subspace" if cosine > 1e-6 else "changes add"), angle


def _largest_cosine(one: LowRankMap, other: LowRankMap) -> float:
    """Return the cosine of the smallest principal angle between what two maps read."""
    bases = [_basis(low_rank_map.read.double()) for low_rank_map in (one, other)]
    if not all(basis.shape[1] for basis in bases):
        return 0.0
    # The singular values of the product of two orthonormal bases are the cosines of the principal
    # angles (Björck and Golub 1973); the largest one belongs to the smallest angle.
    return float(torch.linalg.matrix_norm(bases[0].T @ bases[1], ord=2))


def _basis(directions: Tensor) -> Tensor:
    """Return an orthonormal basis of what the columns span, dependent columns counted once.

    QR would make up a direction for each dependent column, which then meets whatever it likes.
    """
    left, sizes, _ = torch.linalg.svd(directions, full_matrices=False)
    # At the rounding of float32, in which a direction that is there twice may differ from itself.
    basis: Tensor = left[:, sizes > 1e-7 * sizes.max()]
    return basis
