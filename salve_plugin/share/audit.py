"""Proving that a model is a base with exactly these edits and nothing else.

Files cannot be compared for that: metadata, order and padding differ between writers. Compared are
the tensors of two state dicts, bit for bit, each named in a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salve_plugin.control.application import pristine_state
from salve_plugin.control.base import bare, dtype_name
from salve_plugin.control.edited import ledgers_over, touched_rows
from salve_plugin.control.ledger import Ledger, composed, index_of, same_bits, take, union_of
from salve_plugin.control.recipe import Recipe
from salve_plugin.errors import InputError, ReadError
from salve_plugin.store.digest import sha256_tensor, state_digest

State = Mapping[str, Tensor]
Verdict = Literal["identical", "changed as the edit says", "changed otherwise", "missing", "added"]


@dataclass(frozen=True)
class AuditedTensor:
    """One tensor of the two state dicts.

    Attributes:
        name: in the state dict.
        verdict: what has become of it.
        before: SHA-256 of its elements in the base, None if it is not there or not known.
        after: the same in the edited model.
        note: how it differs, where it should not.
    """

    name: str
    verdict: Verdict
    before: str | None
    after: str | None
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        proven: whether the edited model is the base with exactly the edits and nothing else.
        sentence: the verdict in words.
        tensors: every tensor of either side, by name.
        base_digest: over all tensors of the base; computed from the edited model, with the pristine
            rows put back, if no base was given.
        edited_digest: over all tensors of the edited model.
        dtype: of a copy in another precision that was compared as such, e.g. "float16"; else None.
    """

    proven: bool
    sentence: str
    tensors: tuple[AuditedTensor, ...]
    base_digest: str
    edited_digest: str
    dtype: str | None

    def __bool__(self) -> bool:
        """Return whether it is proven."""
        return self.proven

    def __str__(self) -> str:
        """Return the verdict in words."""
        return self.sentence

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values."""
        return {**vars(self), "tensors": [dict(vars(each)) for each in self.tensors]}


@torch.no_grad()
def audit(
    edits: Sequence[Recipe],
    pristine: Mapping[str, Tensor] | None,
    base: nn.Module | State | str | Path | None,
    edited: nn.Module | State | str | Path,
) -> Audit:
    """Say whether `edited` is `base` with exactly the edits and nothing else.

    Args:
        edits: all that should be in the model.
        pristine: by parameter path, the rows that any of them touches, without them; needed where
            no base is given.
        base: a model (without its edits), a state dict, or the file of one; None to put the
            pristine rows back into the edited model, and compare the digest over everything.
        edited: the same of the edited model, with all that is on it.

    Raises:
        InputError: if neither a base nor pristine rows are given, or something is no state dict.
        ReadError: if a file cannot be read.
    """
    after = state_of(edited)
    if base is None:
        return _against_digest(edits, pristine, after)
    before = state_of(base, pristine=True)
    cast = _cast(before, after)
    wanted = before if cast is None else {n: _as(t, cast) for n, t in before.items()}
    expected, foreign = _expected(edits, before)
    aliases = _aliases(before, set(expected))
    rows = [
        _compared(name, before, wanted, after, expected.get(aliases.get(name, name)), cast)
        for name in sorted({*before, *after})
    ]
    return _audit(edits, rows, state_digest(before), state_digest(after), cast, foreign)


def state_of(
    source: nn.Module | State | str | Path, *, pristine: bool = False
) -> dict[str, Tensor]:
    """Return the tensors of a model, a state dict, or a file of one (safetensors or torch).

    Args:
        source: what holds them.
        pristine: take a model without the edits that are on it.

    Raises:
        InputError: if there are no tensors in it.
        ReadError: if a file cannot be read.
    """
    if isinstance(source, nn.Module):
        network = bare(source)
        found: Mapping[str, Any] = pristine_state(network) if pristine else network.state_dict()
    elif isinstance(source, str | Path):
        found = _loaded(Path(source))
    else:
        found = source
    tensors = {name: each.detach() for name, each in found.items() if isinstance(each, Tensor)}
    if not tensors:
        raise InputError(f"{type(source).__name__} holds no tensors; expected a model's state dict")
    return tensors


def _loaded(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            tensors: dict[str, Any] = safetensors.torch.load_file(path)
            return tensors
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has errors of its own for a file that is not one
        raise ReadError(
            f"cannot read the weights in {path}: {error}; expected a .safetensors file, or a state "
            "dict that torch.save wrote"
        ) from error
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(inner, Mapping):
        raise InputError(f"{path} holds a {type(inner).__name__}, expected a state dict")
    return inner


def _cast(before: State, after: State) -> torch.dtype | None:
    """Return the one floating type that the edited model was cast to, if it was."""
    kinds = {
        after[name].dtype
        for name, tensor in before.items()
        if name in after and tensor.is_floating_point() and after[name].dtype != tensor.dtype
    }
    return kinds.pop() if len(kinds) == 1 else None


def _as(tensor: Tensor, kind: torch.dtype) -> Tensor:
    return tensor.to(kind) if tensor.is_floating_point() else tensor


def _expected(edits: Sequence[Recipe], before: State) -> tuple[dict[str, Tensor], list[str]]:
    """Return what the edits make of the base, and which tensors are not of their base."""
    paths = sorted({path for edit in edits for path in edit.base.tensors})
    foreign = [
        path for path in paths
        if path not in before
        or any(
            (tuple(before[path].shape), dtype_name(before[path]), sha256_tensor(before[path]))
            != (e.base.tensors[path].shape, e.base.tensors[path].dtype, e.base.tensors[path].sha256)
            for e in edits if path in e.base.tensors
        )
    ]  # fmt: skip
    if foreign:
        return {}, foreign
    rows = {
        path: union_of([touched_rows(e, path) for e in edits if path in e.base.tensors])
        for path in paths
    }
    ledgers = ledgers_over(edits, {path: take(before[path], rows[path]) for path in paths})
    return {path: _whole(before[path], ledger) for path, ledger in ledgers.items()}, []


def _whole(pristine: Tensor, ledger: Ledger) -> Tensor:
    result = pristine.clone()
    result[index_of(ledger.rows)] = composed(ledger)
    return result


def _aliases(before: State, touched: set[str]) -> dict[str, str]:
    """Return other names of touched tensors: tied weights are one tensor with several names."""
    home = {before[name].data_ptr(): name for name in touched if name in before}
    return {
        name: home[tensor.data_ptr()]
        for name, tensor in before.items()
        if tensor.numel() and tensor.data_ptr() in home
        and tensor.shape == before[home[tensor.data_ptr()]].shape
    }  # fmt: skip


def _compared(
    name: str, before: State, wanted: State, after: State, expected: Tensor | None,
    cast: torch.dtype | None,
) -> AuditedTensor:  # fmt: skip
    hashes = [
        None if name not in state else sha256_tensor(state[name]) for state in (before, after)
    ]
    if name not in after:
        return AuditedTensor(name, "missing", hashes[0], None)
    if name not in before:
        return AuditedTensor(name, "added", None, hashes[1])
    now = after[name].cpu()
    target = wanted[name].cpu() if expected is None else expected.cpu()
    target = target if cast is None else _as(target, cast)
    same = same_bits(target.contiguous(), now.contiguous())
    if expected is not None and same:
        return AuditedTensor(name, "changed as the edit says", hashes[0], hashes[1])
    if same:
        return AuditedTensor(name, "identical", hashes[0], hashes[1])
    untouched = expected is not None and same_bits(
        wanted[name].cpu().contiguous(), now.contiguous()
    )
    note = "is still the base's, the edit is not in it" if untouched else _how(target, now)
    return AuditedTensor(name, "changed otherwise", hashes[0], hashes[1], note)


def _how(expected: Tensor, found: Tensor) -> str:
    """Return in a few words how a tensor differs from what it should be."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return (
            f"{dtype_name(found)}{list(found.shape)}, expected "
            f"{dtype_name(expected)}{list(expected.shape)}"
        )
    differs = (
        expected.reshape(len(expected), -1) != found.reshape(len(found), -1)
        if (expected.ndim)
        else (expected != found).reshape(1, 1)
    )
    rows = differs.any(1).nonzero()[:, 0].tolist()
    gap = float((expected.double() - found.double()).abs().max())
    return f"{len(rows)} rows differ ({', '.join(map(str, rows[:5]))}), by {gap:.3g} at most"


def _against_digest(
    edits: Sequence[Recipe], pristine: Mapping[str, Tensor] | None, after: State
) -> Audit:
    """Put the pristine rows back and compare the digest over everything with the edits' own."""
    states = {edit.base.state for edit in edits}
    if pristine is None or len(states) != 1 or None in states:
        raise InputError(
            "without the base model, an audit needs the pristine rows and the digest of the whole "
            "base; pass base=, or an artifact made with EditArtifact.of(model, edit)"
        )
    ledgers = ledgers_over(edits, pristine)
    restored, rows = dict(after), []
    for name, ledger in ledgers.items():
        present = name in after and after[name].shape == edits_shape(edits, name)
        current = take(after[name], ledger.rows).cpu() if present else None
        as_said = current is not None and same_bits(composed(ledger), current.contiguous())
        if present:
            whole = after[name].clone()
            whole[index_of(ledger.rows)] = ledger.pristine.to(whole)
            restored[name] = whole
        verdict: Verdict = "changed as the edit says" if as_said else "changed otherwise"
        rows.append(
            AuditedTensor(
                name, verdict if name in after else "missing",
                sha256_tensor(restored[name]) if present else None,
                sha256_tensor(after[name]) if name in after else None,
            )
        )  # fmt: skip
    (state,) = states
    digest = state_digest(restored)
    if all(row.verdict == "changed as the edit says" for row in rows) and digest != state:
        sentence = (
            f"NOT proven: the touched tensors are as {_names(edits)} says, but the rest of the "
            "model is not the base's; pass the base model to see which tensors differ"
        )
        return Audit(False, sentence, tuple(rows), digest, state_digest(after), None)
    return _audit(edits, rows, digest, state_digest(after), None, [])


def edits_shape(edits: Sequence[Recipe], path: str) -> tuple[int, ...]:
    """Return the shape of a parameter in the edits' base."""
    return next(e.base.tensors[path].shape for e in edits if path in e.base.tensors)


def _names(edits: Sequence[Recipe]) -> str:
    names = ", ".join(edit.digest[:12] for edit in edits)
    return f"edit {names}" if len(edits) == 1 else f"the edits {names}"


def _audit(
    edits: Sequence[Recipe], rows: Sequence[AuditedTensor], before: str, after: str,
    cast: torch.dtype | None, foreign: Sequence[str],
) -> Audit:  # fmt: skip
    wrong = [row for row in rows if row.verdict in ("changed otherwise", "missing", "added")]
    changed = [row for row in rows if row.verdict == "changed as the edit says"]
    known = {edit.base.state for edit in edits} - {None}
    kind = None if cast is None else str(cast).removeprefix("torch.")
    proven = not foreign and not wrong and known <= {before}
    if foreign:
        sentence = f"NOT proven: {_names(edits)} was made for another base; {list(foreign)} differ"
    elif wrong:
        named = "; ".join(f"{row.name}: {row.verdict} {row.note}".strip() for row in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        sentence = (
            f"NOT proven: {len(wrong)} of {len(rows)} tensors are neither the base's nor what "
            f"{_names(edits)} makes of it ({named}{more})"
        )
    elif not proven:
        sentence = (
            f"NOT proven: the model is the given base with {_names(edits)} and nothing else, but "
            "that base differs from the one that was edited in tensors that no edit touches"
        )
    else:
        copy = "" if kind is None else f"a {kind} copy of "
        sentence = (
            f"Proven: the model is {copy}the base with exactly {_names(edits)} and nothing else; "
            f"{len(changed)} of {len(rows)} tensors changed, as the edit says"
        )
    return Audit(proven, sentence, tuple(rows), before, after, kind)
