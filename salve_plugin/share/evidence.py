"""Critical strengths in an artifact: per image as tensors, per class as JSON.

Per image, infinity ("no strength does it") is a value like any other and safetensors holds it.
JSON has no infinity: there a quantile is null, and the share of such images is given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from salve_plugin.control.critical import AlphaCrit
from salve_plugin.errors import InputError

PREFIX = "alpha_crit."
TENSORS = {
    "values": torch.float64,
    "linear": torch.float64,
    "labels": torch.int64,
    "predicted": torch.int64,
}
"""The tensors of critical strengths, each (images,)."""
_UNUSED_FRACTION = 0.5  # `alpha_crit`'s default, where the target does not depend on it


def tensors(critical: AlphaCrit) -> dict[str, Tensor]:
    """Return the values per image by their names in `edit.safetensors`.

    Raises:
        InputError: as for `check`.
    """
    values: dict[str, Tensor] = {name: getattr(critical, name) for name in TENSORS}
    check(values)
    return {PREFIX + name: tensor.detach().cpu() for name, tensor in values.items()}


def check(values: Mapping[str, Tensor]) -> None:
    """Raise unless the values are strengths and the labels are classes.

    Args:
        values: the tensors by name, without the prefix.

    Raises:
        InputError: if a tensor is missing or unknown, of another type or length, a strength is
            negative or NaN, or a label is negative.
    """
    if set(values) != set(TENSORS):
        raise InputError(f"critical strengths are {sorted(TENSORS)}; found {sorted(values)}")
    count = values["values"].numel()
    for name, dtype in TENSORS.items():
        tensor = values[name]
        if tensor.dtype != dtype or tensor.shape != (count,):
            raise InputError(
                f"'{PREFIX}{name}' is {tensor.dtype}{list(tensor.shape)}; expected {dtype} of "
                f"shape [{count}], one entry an image"
            )
        if not bool((tensor >= 0).all()):  # also catches NaN; infinity is allowed
            raise InputError(f"'{PREFIX}{name}' holds NaN or a negative number")


def rebuild(
    said: Mapping[str, Any] | None, parts: Mapping[str, Tensor], labels: Sequence[str] | None
) -> AlphaCrit | None:
    """Return the critical strengths from the manifest's part, the tensors and the class names.

    Raises:
        InputError: as for `check`, or if there are tensors without a summary.
    """
    if said is None and not parts:
        return None
    if said is None:
        raise InputError(f"critical strengths {sorted(parts)} have no summary")
    check(parts)
    fraction = said["fraction"]
    return AlphaCrit(
        **parts,
        target=said["target"],
        fraction=_UNUSED_FRACTION if fraction is None else float(fraction),
        against=said["against"],
        classes=None if labels is None else tuple(labels),
    )
