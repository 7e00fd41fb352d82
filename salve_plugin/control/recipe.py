"""What an edit says: which site, operator and parameters of which base. Applies nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from salve_plugin.control.base import Base
from salve_plugin.control.edit_fields import EditFields
from salve_plugin.control.operators import (
    Fold,
    Gate,
    LowRankMap,
    LowRankUpdate,
    Operator,
    Role,
    operator_fields,
    operator_of,
)  # fmt: skip
from salve_plugin.control.operators.base import real
from salve_plugin.control.provenance import Exactness, Provenance
from salve_plugin.control.rows import Rows, check_rows, row_tuple
from salve_plugin.control.targets import Target
from salve_plugin.errors import InputError
from salve_plugin.site import Site
from salve_plugin.store.digest import content_digest
from salve_plugin.store.record import as_json

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True, eq=False, repr=False)
class Recipe:
    """The contents of an `Edit`; that class adds what is done with them.

    Attributes:
        site: the activation that changes.
        operator: how it changes.
        targets: the layers that take the change over.
        base: the model and weights that the edit was made for.
        rows: the outputs of the readers that change, ascending; None means all of them (the paper).
        provenance: where the operator's directions come from.
        fold: what lies between the writer and the site; None if nothing does.
        exactness: how exactly the weights reproduce the change at the site, measured when the edit
            was made; None for the head, which is linear, and where nobody measured. No part of the
            edit's identity.
    """

    site: Site
    operator: Operator
    targets: tuple[Target, ...]
    base: Base
    rows: Rows = None
    provenance: Provenance = field(default_factory=Provenance)
    fold: Fold | None = None
    exactness: Exactness | None = None
    _verified: dict[str, Tensor] = field(default_factory=dict, init=False)
    _made: dict[tuple[int, ...], Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            InputError: naming the part that does not fit.
        """
        given = row_tuple(self.rows)
        rows = None if given is None else tuple(sorted(given))
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "targets", tuple(self.targets))
        if not isinstance(self.operator, Operator) or not isinstance(self.provenance, Provenance):
            raise InputError(
                f"operator {self.operator!r:.200} and provenance {self.provenance!r:.200} are to "
                "be a Gate, LowRankMap or LowRankUpdate, and a Provenance"
            )
        if given != rows and isinstance(self.operator, LowRankUpdate):
            object.__setattr__(self, "operator", _sorted_with(self.operator, given or ()))
        self._check_targets()
        outputs = tuple(
            target.n_outputs(self.base.tensors[target.weight].shape) for target in self.targets
        )
        # The same row numbers are meant in every target, so that the smallest one bounds them.
        check_rows(self.rows, min(outputs), self.role)
        changing = None if self.rows is None else len(self.rows)
        self.operator.check(self.site.width, changing, outputs)
        if isinstance(self.operator, LowRankUpdate):
            self.operator.check_inputs(self.base.tensors[self.targets[0].weight].shape)
        self._check_fold()
        latents = self.provenance.latents
        gate = self.operator if isinstance(self.operator, Gate) else None
        if gate is not None and latents and len(latents) != len(gate.directions):
            raise InputError(
                f"{len(gate.directions)} directions are said to be of the latents "
                f"{list(latents)}: one each was expected"
            )

    def _check_targets(self) -> None:
        paths = [path for target in self.targets for path in target.paths]
        if not self.targets or set(paths) != set(self.base.tensors):
            raise InputError(
                f"the edit's targets are the parameters {sorted(set(paths))}, its base has "
                f"fingerprints of {sorted(self.base.tensors)}"
            )
        if len({target.role for target in self.targets}) > 1:
            raise InputError("an edit changes the readers of a site or its writer, not both")
        for target in self.targets:
            target.check_shape(self.site.width, self.base.tensors[target.weight].shape)
            if target.role == "writer" and target.affine != self.site.affine:
                raise InputError(
                    f"site '{self.site.name}' lies behind {list(self.site.affine)}, the target "
                    f"says {list(target.affine)}"
                )
        self._check_layers()

    def _check_layers(self) -> None:
        """Compare the layers that change with those that the site names.

        A change of the site is one of all its readers (each tied weight once, so an edit's site
        does not name it again), or of its one writer; an update is of a layer of its own.
        """
        # If one reader of several were left out, the site would be changed for some of what reads
        # it and not for the rest: that is no change of the site.
        layers = {_layer(target.weight) for target in self.targets}
        known = set(self.site.readers if self.role == "reader" else self.site.writers)
        whole = self.role == "reader" and not isinstance(self.operator, LowRankUpdate)
        if not layers <= known or (whole and layers != known):
            raise InputError(
                f"the edit changes the layers {sorted(layers)}, site '{self.site.name}' has the "
                f"{self.role}s {sorted(known)}"
            )

    def _check_fold(self) -> None:
        folded = any(target.affine for target in self.targets)
        if folded != (self.fold is not None):
            raise InputError("the edit needs the affine map behind its writer, and only then")
        if self.fold is not None:
            width = (self.site.width,)
            if tuple(self.fold.scale.shape) != width or tuple(self.fold.shift.shape) != width:
                raise InputError(f"the affine map behind the writer is not {width[0]} wide")
            if not bool((self.fold.scale.isfinite() & (self.fold.scale != 0)).all()):
                raise InputError("the affine map behind the writer scales by zero or not finitely")

    @property
    def role(self) -> Role:
        """Whether the site's readers or its writer are changed."""
        return self.targets[0].role

    @property
    def gate(self) -> Gate:
        """The operator of an edit that is known to be a gate, the paper's.

        Raises:
            InputError: if it is another form.
        """
        if not isinstance(self.operator, Gate):
            raise InputError(
                f"edit {self.digest[:12]} is a {self.operator.form}; only a gate has a strength "
                "and directions (salve.suppress and salve.enhance make gates)"
            )
        return self.operator

    @property
    def latents(self) -> tuple[int, ...]:
        """The dictionary's latents that the edit is about; none if it comes from elsewhere."""
        return self.provenance.latents

    @property
    def latent(self) -> int:
        """The one latent that the edit is about.

        Raises:
            InputError: if it is about none, or several.
        """
        if len(self.latents) != 1:
            raise InputError(
                f"edit {self.digest[:12]} is about the latents {list(self.latents)}, not about one"
            )
        return self.latents[0]

    @property
    def dictionary_digest(self) -> str | None:
        """Digest of the dictionary that the directions come from, if it is known."""
        return self.provenance.dictionary

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """What travels beside `to_json`, by name."""
        tensors = dict(self.operator.tensors)
        if self.fold is not None:
            tensors |= {"fold_scale": self.fold.scale, "fold_shift": self.fold.shift}
        return tensors

    @cached_property
    def digest(self) -> str:
        """The edit's identity: hex SHA-256 over what it does and to which base."""
        return self._digest_of(self.operator)

    @cached_property
    def family(self) -> str:
        """The same for all edits that differ in strength (or scale) only, as critical strengths do.

        Hex SHA-256 of the edit with the operator that changes nothing.
        """
        return self._digest_of(self.operator.at_zero)

    def _digest_of(self, operator: Operator) -> str:
        identity = {name: value for name, value in self.to_json().items() if name != "exactness"}
        identity["operator"] = operator_fields(operator)
        del identity["base"]["network"]  # `state` says it already
        return content_digest(identity, {**self.tensors, **operator.tensors})

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors as plain JSON values; see `from_json`."""
        fields: dict[str, Any] = as_json({
            "base": self.base,
            "exactness": self.exactness,
            "operator": operator_fields(self.operator),
            "provenance": self.provenance,
            "rows": self.rows,
            "site": self.site,
            "targets": self.targets,
        })  # fmt: skip
        return fields

    @classmethod
    def from_json(
        cls: type[R], fields: Mapping[str, Any] | EditFields, tensors: Mapping[str, Tensor]
    ) -> R:
        """Rebuild an edit from `to_json`, or what was made of it already, and its tensors.

        Raises:
            InputError: if a field is missing, unknown, ill-typed or out of range, or two contradict
                each other.
        """
        known = fields if isinstance(fields, EditFields) else EditFields.from_json(fields)
        # The operator refuses tensors that it does not know, so those of the fold are taken out
        # first.
        plain = {name: value for name, value in tensors.items() if not name.startswith("fold_")}
        return cls(
            known.site,
            operator_of(known.operator.to_json(), plain),
            known.targets,
            known.base,
            known.rows,
            known.provenance,
            _fold(known.targets, {name: tensors[name] for name in tensors.keys() - plain.keys()}),
            known.exactness,
        )

    @property
    def strength(self) -> float:
        """How strong: a gate's strength; of a low-rank map the amount 1 − λ, 1 for removing all.

        Raises:
            InputError: if the edit is an update, which has none.
        """
        if isinstance(self.operator, LowRankMap):
            return 1.0 - self.operator.scale
        return self.gate.strength

    def with_strength(self: R, strength: float) -> R:
        """Return the edit with another strength, as `strength` counts it; nobody has measured that.

        Raises:
            InputError: if the edit has no strength, or this is none.
        """
        operator: Operator
        if isinstance(self.operator, LowRankMap):
            operator = replace(self.operator, scale=1.0 - real(strength, "strength"))
        else:
            operator = replace(self.gate, strength=strength)
        other = replace(self, operator=operator, exactness=None)
        # Verified for the same base: it is compared with the model all the same, but not hashed.
        other._verified.update(self._verified)
        return other

    def __eq__(self, other: object) -> bool:
        """Compare by digest."""
        return isinstance(other, Recipe) and self.digest == other.digest

    def __hash__(self) -> int:
        """Hash by digest."""
        return hash(self.digest)

    def __deepcopy__(self: R, memo: object) -> R:
        """Return the edit itself: it is a value (and lies in the ledger of an edited model)."""
        return self

    def __getstate__(self) -> dict[str, object]:
        """Pickle the fields, not what this process has verified or derived."""
        # Another process must hash the weight itself before it believes that it is the base.
        names = type(self).__dataclass_fields__
        return {name: self.__dict__[name] for name in names} | {"_verified": {}, "_made": {}}


def _sorted_with(operator: LowRankUpdate, rows: tuple[int, ...]) -> LowRankUpdate:
    """Return an update of rows in some order for the same rows in ascending order."""
    if len(operator.left) != len(rows):
        return operator  # refused where shapes are checked
    order = sorted(range(len(rows)), key=rows.__getitem__)
    shift = None if operator.shift is None else operator.shift[order]
    return replace(operator, left=operator.left[order], shift=shift)


def _layer(path: str) -> str:
    return path.rpartition(".")[0]


def _fold(targets: tuple[Target, ...], tensors: Mapping[str, Tensor]) -> Fold | None:
    """Return the affine map that travels with an edit of a writer."""
    if not tensors:
        return None
    doubles = all(
        each.dtype == torch.float64 and each.ndim == 1 and bool(each.isfinite().all())
        for each in tensors.values()
    )
    if set(tensors) != {"fold_scale", "fold_shift"} or not doubles:
        raise InputError(f"the tensors {sorted(tensors)} are no affine map behind a writer")
    # Whether the edited bias comes last is not stored: the target's own path says it, and a second
    # statement could contradict that.
    target = targets[0] if targets else None
    last = (
        target is not None and bool(target.affine) and (target.bias == f"{target.affine[-1]}.bias")
    )
    return Fold(tensors["fold_scale"], tensors["fold_shift"], last)
