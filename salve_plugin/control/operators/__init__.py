"""The three forms that carry every permanent edit, as frozen values and pure functions.

A file names a form by a word of this closed vocabulary, never a class to import.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from salve_plugin.control.operators.base import Fold, Operator, Part, Role
from salve_plugin.control.operators.gate import (
    Gate,
    Mode,
    cast_factors,
    check_direction,
    check_strength,
    multiplier,
    product,
    scaled,
    scaled_rows,
    scaled_weight,
)  # fmt: skip
from salve_plugin.control.operators.low_rank_map import LowRankMap, joint_map
from salve_plugin.control.operators.low_rank_update import LowRankUpdate
from salve_plugin.errors import InputError

FORMS: Mapping[str, type[Operator]] = {
    kind.form: kind for kind in (Gate, LowRankMap, LowRankUpdate)
}


def operator_of(fields: object, tensors: Mapping[str, Tensor]) -> Operator:
    """Return the operator that `operator_fields` and `tensors` describe.

    Raises:
        InputError: if the form is unknown, or a field or tensor cannot be used.
    """
    if not isinstance(fields, Mapping) or fields.get("form") not in FORMS:
        form = fields.get("form") if isinstance(fields, Mapping) else fields
        raise InputError(f"unknown operator form {str(form)[:80]!r}; expected one of {[*FORMS]}")
    rest = {name: value for name, value in fields.items() if name != "form"}
    return FORMS[fields["form"]].rebuilt(rest, tensors)


def operator_fields(operator: Operator) -> dict[str, Any]:
    """Return an operator's form and numbers as plain JSON values."""
    return {"form": operator.form, **operator.fields()}


__all__ = [
    "FORMS", "Fold", "Gate", "LowRankMap", "LowRankUpdate", "Mode", "Operator", "Part", "Role",
    "cast_factors", "check_direction", "check_strength", "joint_map", "multiplier",
    "operator_fields", "operator_of", "product", "scaled", "scaled_rows", "scaled_weight",
]  # fmt: skip
