"""What has become of one tensor of a base, compared bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Literal

import torch
from torch import Tensor

from salve_plugin.control.base import dtype_name
from salve_plugin.control.rows import same_bits
from salve_plugin.faces.one_line import one_line
from salve_plugin.share.model_state import State
from salve_plugin.store.checkpoint import in_short

Verdict = Literal["identical", "changed as the edit says", "changed otherwise", "missing", "added"]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class AuditedTensor:
    """One tensor of the two state dicts.

    Attributes:
        name: in the state dict.
        verdict: what has become of it.
        before: SHA-256 of its elements in the base, None if it is not there or not known.
        after: the same in the edited model.
        note: how it differs, where it should not; in which precision it was compared.
    """

    __repr__ = one_line

    name: str
    verdict: Verdict
    before: str | None
    after: str | None
    note: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it is the base's, or what the edits make of it."""
        return self.verdict in ("identical", "changed as the edit says")


def cast_between(before: State, after: State) -> torch.dtype | None:
    """Return the one floating type that the edited model was cast to, if it was."""
    kinds = {
        after[name].dtype
        for name, tensor in before.items()
        if name in after and tensor.dtype in FLOATS and after[name].dtype != tensor.dtype
    }
    # Several types are no copy in another precision: every tensor is then compared as it is.
    return kinds.pop() if len(kinds) == 1 and kinds <= {*FLOATS} else None


def compared(
    name: str, before: Tensor, after: Tensor, digests: tuple[str, str], expected: Tensor | None,
    cast: torch.dtype | None,
) -> AuditedTensor:  # fmt: skip
    """Compare one tensor of the edited model with what it should be.

    What is `expected` is what the edits make of it, None if they do not touch it; `digests` are of
    the elements before and after, `cast` is the type of a copy, see `cast_between`.
    """
    before, after = before.cpu(), after.cpu()
    target, note = (before if expected is None else expected.cpu()), ""
    if after.dtype == cast and target.dtype in FLOATS and target.dtype != cast:
        # A wider type holds all that the base has; a narrower one hides differences, which is to be
        # said.
        wider = torch.promote_types(target.dtype, cast) == cast
        note = f"{'widened' if wider else 'rounded'} to {dtype_name(after)}"
        before, target = before.to(cast), target.to(cast)
    if same_bits(target, after):
        if expected is None:
            return AuditedTensor(name, "identical", *digests, note)
        if note and same_bits(before, after):
            note += ", which leaves nothing of the change"
        return AuditedTensor(name, "changed as the edit says", *digests, note)
    untouched = expected is not None and same_bits(before, after)
    note = "is still the base's, the edit is not in it" if untouched else how(target, after)
    return AuditedTensor(name, "changed otherwise", *digests, note)


def how(expected: Tensor, actual: Tensor) -> str:
    """Return in a few words how a tensor differs from what it should be."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return (
            f"{dtype_name(actual)}{list(actual.shape)}, expected "
            f"{dtype_name(expected)}{list(expected.shape)}"
        )
    if not expected.ndim:
        return f"is {actual.item()}, expected {expected.item()}"
    # By bits: a flipped sign of zero and another NaN are differences, too.
    bits = [each.reshape(len(each), -1).contiguous().view(torch.uint8) for each in
            (expected, actual)]  # fmt: skip
    rows = (bits[0] != bits[1]).any(1).nonzero()[:, 0].tolist()
    size = ""
    if expected.is_floating_point():
        gap = float((expected.double() - actual.double()).abs().max())
        size = "" if isnan(gap) or not gap else f", by {gap:.3g} at most"
    return f"{len(rows)} rows differ ({in_short(list(map(str, rows)), 5)}){size}"


def hinted(rows: Sequence[AuditedTensor], expected: State) -> list[AuditedTensor]:
    """Say of tensors that changed exactly as a touched one did that the two may be tied."""
    changes = {
        (row.before, row.after): row.name
        for row in rows
        if row.name in expected and row.verdict == "changed as the edit says"
    }
    return [
        row if row.is_right or (row.before, row.after) not in changes
        else replace(
            row,
            note=f"as '{changes[row.before, row.after]}' did; if they are one tied weight, compare "
            "models, whose tensors share memory, instead of files",
        )
        for row in rows
    ]  # fmt: skip
