"""Proving that a model is a base with exactly these edits and nothing else.

Files cannot be compared for that: metadata, order and padding differ between writers. Compared are
the tensors of two state dicts, bit for bit, each named in a table.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salve_plugin.control.edited import ledgers_over, touched_rows
from salve_plugin.control.formula import Ledger, composed
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import index_of, same_bits, take, union_of
from salve_plugin.errors import InputError, UnsupportedModelError, printable
from salve_plugin.faces.one_line import one_line
from salve_plugin.share.audited_tensor import AuditedTensor, cast_between, compared, hinted, how
from salve_plugin.share.model_state import (
    State,
    StateSource,
    state_of,
    tied_to,
    without_prefix,
)
from salve_plugin.store.checkpoint import in_short
from salve_plugin.store.digest import Fingerprint, fingerprints, state_digest


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        proven: whether the edited model is the base with exactly the edits and nothing else.
        sentence: the verdict in words.
        tensors: every tensor of either side, by name; only those that the edits touch, if no base
            was given and the rest is not the base's.
        edits: digests of the edits.
        base_digest: over all tensors of the base; computed from the edited model, with the pristine
            rows put back, if no base was given.
        edited_digest: over all tensors of the edited model.
        dtype: of a copy in another precision that was compared as such, e.g. "float16"; else None.
    """

    __repr__ = one_line

    proven: bool
    sentence: str
    tensors: tuple[AuditedTensor, ...]
    edits: tuple[str, ...]
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
        return {
            **vars(self),
            "edits": list(self.edits),
            "tensors": [dict(vars(tensor)) for tensor in self.tensors],
        }


@torch.no_grad()
def audit(
    edits: Sequence[Recipe],
    pristine: Mapping[str, Tensor] | None,
    base: StateSource | None,
    edited: StateSource,
) -> Audit:
    """Say whether `edited` is `base` with exactly the edits and nothing else.

    Every tensor is compared bit for bit. If the edited model's floating tensors have another dtype
    than the base's, one for all, they are compared with the base and the edits cast to that dtype,
    and the verdict says so: what the cast rounds away cannot be seen.

    Names of one tied weight are known by sharing memory in the base (or in an edited model, not in
    a file of one). A prefix that all names of a state dict have, such as "module.", is left out.

    Args:
        edits: all that should be in the model.
        pristine: by parameter path, the rows that any of them touches, without them; needed where
            no base is given.
        base: a model (without its edits), a state dict, or the path of one, see `state_of`; None
            to put the pristine rows back into the edited model, and compare the digest over
            everything with the one that the edits know of their base.
        edited: the same of the edited model, with all that is on it.

    Raises:
        InputError: if there are no edits, if neither a base nor pristine rows are given, or
            something is no state dict.
        ReadError: if a file cannot be read.
        UnsupportedModelError: if a tensor has no plain elements, see `state_digest`, or edits call
            one tied weight by different names.
    """
    edits = list(dict.fromkeys(edits))
    if not edits:
        raise InputError("there is no edit to look for; give at least one")
    paths = {path for edit in edits for path in edit.base.tensors}
    after = without_prefix(state_of(edited), paths)
    tied = tied_to(after, paths) if isinstance(edited, nn.Module) else {}
    _check_one_name(tied, paths)
    if base is None:
        return _against_digest(edits, pristine, after, tied)
    before = without_prefix(state_of(base, pristine=True), paths)
    prints, after_prints = fingerprints(before), fingerprints(after)
    hashes = {name: each.sha256 for name, each in prints.items()}
    expected, foreign = _expected(edits, before, prints)
    tied = {
        name: path
        for name, path in {**tied, **tied_to(before, paths)}.items()
        if name in before and path in before and hashes[name] == hashes[path]
    }
    _check_one_name(tied, paths)
    cast = cast_between(before, after)
    rows = []
    for name in sorted({*before, *after}):
        if name not in after:
            rows.append(AuditedTensor(name, "missing", hashes[name], None))
        elif name not in before:
            rows.append(AuditedTensor(name, "added", None, after_prints[name].sha256))
        else:
            target = expected.get(tied.get(name, name))
            pair = hashes[name], after_prints[name].sha256
            rows.append(compared(name, before[name], after[name], pair, target, cast))
    rows = hinted(rows, expected)
    digests = state_digest(prints), state_digest(after_prints)
    return _audit(edits, rows, *digests, cast, foreign)


def _check_one_name(tied: Mapping[str, str], paths: Set[str]) -> None:
    """Raise if edits call one parameter by several names: each alone is not what it becomes."""
    double = [name for name, home in tied.items() if name in paths and home != name]
    if double:
        raise UnsupportedModelError(
            f"edits touch one tied weight under several names, {[*double, tied[double[0]]]}; make "
            "them all at the same path"
        )


def _expected(
    edits: Sequence[Recipe], before: State, prints: Mapping[str, Fingerprint]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return what the edits make of the base, and which tensors are not of their base."""
    foreign = {
        path
        for edit in edits
        for path, wanted in edit.base.tensors.items()
        if prints.get(path) != wanted
    }
    if foreign:
        return {}, sorted(foreign)
    pristine = {
        path: take(before[path], union_of([touched_rows(e, path) for e in edits if path in
                                           e.base.tensors]))
        for path in sorted({path for edit in edits for path in edit.base.tensors})
    }  # fmt: skip
    ledgers = ledgers_over(edits, pristine)
    return {path: _with_rows(before[path], led, composed(led)) for path, led in ledgers.items()}, []


def _with_rows(tensor: Tensor, ledger: Ledger, rows: Tensor) -> Tensor:
    """Return a copy of a parameter with other values in the rows that a ledger covers."""
    result = tensor.clone()
    result[index_of(ledger.rows)] = rows.to(result)
    return result


def _against_digest(
    edits: Sequence[Recipe], pristine: Mapping[str, Tensor] | None, after: State,
    tied: Mapping[str, str],
) -> Audit:  # fmt: skip
    """Put the pristine rows back and compare the digest over everything with the edits' own."""
    states = {edit.base.state for edit in edits}
    if len(states) > 1:
        raise InputError(
            f"{_names(edits)} were made for different bases; give the base model (base=, --base), "
            "which says to which of them the edited model belongs"
        )
    touched = {path for edit in edits for path in edit.base.tensors}
    if pristine is None or pristine.keys() != touched or None in states:
        raise InputError(
            "without the base model, an audit needs the pristine rows and the digest of the whole "
            "base; give the base model (base=, --base), or an artifact that was made with "
            "EditArtifact.of(model, edit)"
        )
    ledgers = ledgers_over(edits, pristine)
    restored, after_prints = put_back(edits, ledgers, after, tied), fingerprints(after)
    prints, rows = after_prints | fingerprints(restored), []
    for path, ledger in ledgers.items():
        names = [path, *sorted(n for n, home in tied.items() if home == path != n)]
        wanted = composed(ledger)
        for name in names:
            if name not in after:
                rows.append(AuditedTensor(name, "missing", None, None))
                continue
            sha256 = after_prints[name].sha256
            if name not in restored:
                shape = list(_shape(edits, path))
                note = f"{list(after[name].shape)}, expected {shape}"
                rows.append(AuditedTensor(name, "changed otherwise", None, sha256, note))
                continue
            current = take(after[name], ledger.rows).cpu().contiguous()
            as_said = same_bits(wanted.cpu(), current)
            rows.append(
                AuditedTensor(
                    name, "changed as the edit says" if as_said else "changed otherwise",
                    prints[name].sha256, sha256, "" if as_said else how(wanted, current),
                )
            )  # fmt: skip
    digest, after_digest = state_digest(prints), state_digest(after_prints)
    if all(row.is_right for row in rows):
        if states != {digest}:
            sentence = (
                f"NOT proven: the touched tensors are as {_names(edits)} says, but the rest of the "
                "model is not the base's; pass the base model to see which tensors differ"
            )
            digests = tuple(edit.digest for edit in edits)
            return Audit(False, sentence, tuple(rows), digests, digest, after_digest, None)
        others = {name: prints[name].sha256 for name in after.keys() - restored.keys()}
        rows += [AuditedTensor(name, "identical", own, own) for name, own in others.items()]
    rows.sort(key=lambda row: row.name)
    return _audit(edits, rows, digest, after_digest, None, [])


def put_back(
    edits: Sequence[Recipe], ledgers: Mapping[str, Ledger], after: State, tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the touched tensors of an edited state dict with their pristine rows in place.

    Args:
        edits: that are in it.
        ledgers: of their parameters, by path.
        after: the edited state dict.
        tied: other names of the parameters, see `tied_to`.

    Returns:
        By name, of those that are there and have the base's shape.
    """
    homes = {**{path: path for path in ledgers}, **tied}
    return {
        name: _with_rows(after[name], ledgers[path], ledgers[path].pristine)
        for name, path in homes.items()
        if name in after and tuple(after[name].shape) == _shape(edits, path)
    }


def _shape(edits: Sequence[Recipe], path: str) -> tuple[int, ...]:
    """Return the shape of a parameter in the edits' base."""
    return next(e.base.tensors[path].shape for e in edits if path in e.base.tensors)


def _names(edits: Sequence[Recipe]) -> str:
    names = ", ".join(edit.digest[:12] for edit in edits)
    return f"edit {names}" if len(edits) == 1 else f"the edits {names}"


def _audit(
    edits: Sequence[Recipe], rows: Sequence[AuditedTensor], before: str, after: str,
    cast: torch.dtype | None, foreign: Sequence[str],
) -> Audit:  # fmt: skip
    wrong = [row for row in rows if not row.is_right]
    changed = [row for row in rows if row.verdict == "changed as the edit says"]
    known = {edit.base.state for edit in edits} - {None}
    proven = not foreign and not wrong and known <= {before}
    if foreign:
        sentence = (
            f"NOT proven: {_names(edits)} was made for another base; it touches "
            f"{in_short(foreign)}, which differ from the given base's or are not there"
        )
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
        copy, limit = _in_words(rows, cast)
        sentence = (
            f"Proven: the model is {copy}the {'base' if known else 'given base'} with exactly "
            f"{_names(edits)} and nothing else; {len(changed)} of {len(rows)} tensors changed, as "
            f"the edit{'s say' if len(edits) > 1 else ' says'}{limit}"
        )
    kind = None if cast is None else str(cast).removeprefix("torch.")
    digests = tuple(edit.digest for edit in edits)
    return Audit(proven, printable(sentence), tuple(rows), digests, before, after, kind)


def _in_words(rows: Sequence[AuditedTensor], cast: torch.dtype | None) -> tuple[str, str]:
    """Return what is said of a copy in another precision: of what, and what it cannot show."""
    if cast is None:
        return "", ""
    kind = str(cast).removeprefix("torch.")
    rounded = sum(row.note.startswith("rounded") for row in rows)
    limit = f"; {rounded} of them rounded to {kind}, which hides smaller differences"
    return f"a {kind} copy of ", limit if rounded else ""
