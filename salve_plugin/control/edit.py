"""An edit as a value: what to scale, in which model, by how much. Applying it is separate."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from salve_plugin.control.base import Base
from salve_plugin.control.operators import Mode, check_direction, check_strength, multiplier
from salve_plugin.errors import InputError
from salve_plugin.site import Site

OnBaseMismatch = Literal["error", "warn"]
Model = TypeVar("Model", bound=nn.Module)
_FIELDS = (
    "site", "operator", "mode", "latent", "strength", "rows", "base", "dictionary_digest", "dtype",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    r"""One permanent edit: columns of the weights that read a site, scaled by one atom.

    A value: two edits are equal when their digests are. Applying returns nothing and changes the
    model in place; `edited` returns a changed copy; the edit itself never changes.

    Attributes:
        site: the activation whose readers are edited.
        operator: "scale", $W' = W\,\mathrm{diag}(\max(0, 1 \mp \alpha|c|))$ (SALVE, Eq. 1).
        mode: "suppress" (minus) or "enhance" (plus).
        latent: which atom of the dictionary.
        direction: that atom $c$, (width,), unit norm, on the CPU.
        strength: $\alpha \ge 0$.
        rows: the outputs whose weights change, ascending; None means all of them (the paper).
        base: the model and weights that the edit was made for.
        dictionary_digest: identity of the dictionary that the atom comes from, if known.
    """

    site: Site
    operator: Literal["scale"]
    mode: Mode
    latent: int
    direction: Float[Tensor, " width"]
    strength: float
    rows: tuple[int, ...] | None
    base: Base
    dictionary_digest: str | None = None
    _verified: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check every field; take a private copy of the direction.

        Raises:
            InputError: naming the field that cannot be used.
        """
        if self.operator != "scale" or self.mode not in get_args(Mode):
            raise InputError(
                f"unknown operator {self.operator!r} or mode {self.mode!r}; expected 'scale' and "
                f"one of {list(get_args(Mode))}"
            )
        check_direction(self.direction)
        check_strength(self.strength)
        if len(self.direction) != self.site.width:
            raise InputError(
                f"a direction of {len(self.direction)} features does not fit site "
                f"'{self.site.name}' of width {self.site.width}"
            )
        if self.latent < 0:
            raise InputError(f"latent {self.latent} is negative")
        _check_rows(self.rows, self.base)
        double = self.direction.dtype == torch.float64
        copy = self.direction.detach().to("cpu", torch.float64 if double else torch.float32)
        object.__setattr__(self, "direction", copy.clone().contiguous())
        object.__setattr__(self, "strength", float(self.strength))
        if self.rows is not None:
            object.__setattr__(self, "rows", tuple(sorted(self.rows)))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON form and the direction's little-endian bytes."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        kind = "<f8" if self.direction.dtype == torch.float64 else "<f4"
        return hashlib.sha256(
            text.encode("ascii") + b"\0" + self.direction.numpy().astype(kind).tobytes()
        ).hexdigest()

    @cached_property
    def factors(self) -> Float64[Tensor, " width"]:
        """The multiplier of each column."""
        return multiplier(self.direction, self.strength, self.mode)

    def to_json(self) -> dict[str, object]:
        """Return every field but the direction as plain JSON values; see `from_parts`."""
        return {
            "site": self.site.to_json(),
            "operator": self.operator,
            "mode": self.mode,
            "latent": self.latent,
            "strength": self.strength,
            "rows": None if self.rows is None else list(self.rows),
            "base": self.base.to_json(),
            "dictionary_digest": self.dictionary_digest,
            "dtype": str(self.direction.dtype).removeprefix("torch."),
        }

    @classmethod
    def from_parts(cls, fields: Mapping[str, object], direction: Tensor) -> "Edit":
        """Rebuild an edit from `to_json` and its direction.

        Raises:
            InputError: if a field is missing, unknown, ill-typed or out of range.
        """
        if set(fields) != set(_FIELDS):
            wrong = sorted(set(fields) ^ set(_FIELDS))
            raise InputError(f"edit has missing or unknown fields {wrong}; expected {_FIELDS}")
        values: dict[str, Any] = dict(fields)
        if f"torch.{values.pop('dtype')}" != str(direction.dtype):
            raise InputError(
                f"the edit's direction should be {fields['dtype']}, but is {direction.dtype}"
            )
        kinds: dict[str, tuple[type, ...]] = {
            "site": (Mapping,),
            "operator": (str,),
            "mode": (str,),
            "latent": (int,),
            "strength": (int, float),
            "rows": (list, tuple, type(None)),
            "dictionary_digest": (str, type(None)),
        }
        for name, kind in kinds.items():
            if not isinstance(values[name], kind) or isinstance(values[name], bool):
                raise InputError(f"ill-typed edit field '{name}': {values[name]!r}")
        values["site"] = Site.from_json(values["site"])
        values["base"] = Base.from_json(values["base"])
        values["rows"] = row_tuple(values["rows"])
        values["strength"] = float(values["strength"])
        if values["operator"] != "scale" or values["mode"] not in get_args(Mode):
            raise InputError(f"unknown operator or mode: {values['operator']}, {values['mode']}")
        return cls(direction=direction, **values)

    def apply_(self, model: nn.Module, *, on_base_mismatch: OnBaseMismatch = "error") -> None:
        """Apply the edit in place; see `salve_plugin.control.application.apply_`."""
        from salve_plugin.control import application

        application.apply_(model, self, on_base_mismatch=on_base_mismatch)

    def revert_(
        self, model: nn.Module, *, on_changed: Literal["error", "discard"] = "error"
    ) -> None:
        """Undo the edit bit for bit; see `salve_plugin.control.application.revert_`."""
        from salve_plugin.control import application

        application.revert_(model, self, on_changed=on_changed)

    @contextmanager
    def applied(
        self, model: nn.Module, *, on_base_mismatch: OnBaseMismatch = "error"
    ) -> Iterator[None]:
        """Apply the edit for the length of the context; it is reverted on error too."""
        self.apply_(model, on_base_mismatch=on_base_mismatch)
        try:
            yield
        finally:
            self.revert_(model)

    def edited(self, model: Model, *, on_base_mismatch: OnBaseMismatch = "error") -> Model:
        """Return a deep copy of the model with the edit; the model is left unchanged."""
        copy = deepcopy(model)
        self.apply_(copy, on_base_mismatch=on_base_mismatch)
        return copy

    def __repr__(self) -> str:
        """Say in one line what the edit does; the atom itself would fill a screen."""
        rows = "all rows" if self.rows is None else f"rows {list(self.rows)}"
        return (
            f"<Edit {self.digest[:12]}: {self.mode} latent {self.latent} of '{self.site.name}', "
            f"strength {self.strength:g}, {rows} of {list(self.base.tensors)}>"
        )

    def __eq__(self, other: object) -> bool:
        """Compare by digest."""
        return isinstance(other, Edit) and self.digest == other.digest

    def __hash__(self) -> int:
        """Hash by digest."""
        return hash(self.digest)

    def __deepcopy__(self, memo: object) -> "Edit":
        """Return the edit itself: it is a value (and lies in the ledger of an edited model)."""
        return self

    def __getstate__(self) -> dict[str, object]:
        """Pickle the fields, not what this process has verified or derived."""
        names = type(self).__dataclass_fields__
        return {name: self.__dict__[name] for name in names} | {"_verified": {}}


def row_tuple(rows: Sequence[Any] | None) -> tuple[int, ...] | None:
    """Return outputs as ascending integers; None stays None, all of them.

    Raises:
        InputError: if one is no integer.
    """
    if rows is None:
        return None
    wrong = [row for row in rows if isinstance(row, bool) or not hasattr(row, "__index__")]
    if wrong:
        raise InputError(f"rows must be output indices; got {wrong[:5]}")
    return tuple(sorted(row.__index__() for row in rows))


def _check_rows(rows: tuple[int, ...] | None, base: Base) -> None:
    if rows is None:
        return
    outputs = min((fingerprint.shape[0] for fingerprint in base.tensors.values()), default=math.inf)
    wrong = [row for row in rows if not 0 <= row < outputs]
    if wrong or not rows or len(set(rows)) < len(rows):
        raise InputError(
            f"rows {list(rows)[:10]} must be at least one output, each once, from 0 to "
            f"{outputs - 1}; omit rows to edit all of them"
        )
