"""Proving that a model is a base with exactly these edits and nothing else.

Files cannot be compared for that: metadata, order and padding differ between writers. Compared are
the tensors of two state dicts, bit for bit, each named in a table.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salve_plugin.control.edited import covered_rows, ledgers_over
from salve_plugin.control.formula import Ledger, composed
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import index_of, take
from salve_plugin.errors import InputError, UnsupportedModelError, printable
from salve_plugin.faces.one_line import one_line
from salve_plugin.share.audited_tensor import FLOATS, AuditedTensor, cast_between, compared, hinted
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

    See `salve_plugin.EditArtifact.audit`. If the edited model's floating tensors have another dtype
    than the base's, one for all, they are compared with the base and the edits cast to that dtype,
    and the verdict says so: what the cast rounds away cannot be seen. Names of one tied weight are
    known by sharing memory in the base (or in an edited model, not in a file of one). A prefix that
    all names of a state dict have, such as "module.", is left out.

    Args:
        edits: all that should be in the model.
        pristine: by parameter path, the rows that any of them touches, without them; needed where
            no base is given.
        base: see `state_of`, without the edits on it; None to put the pristine rows back into the
            edited model, whose digest over everything must then be the one that the edits know.
        edited: see `state_of`, with all that is on it.

    Raises:
        SalveError: as there; UnsupportedModelError also if edits call one tied weight by different
            names, InputError also if there are none.
    """
    edits = list(dict.fromkeys(edits))
    if not edits:
        raise InputError("there is no edit to look for; give at least one")
    paths = {path for edit in edits for path in edit.base.tensors}
    after = without_prefix(state_of(edited), paths)
    tied = tied_to(after, paths) if isinstance(edited, nn.Module) else {}
    _check_one_name(tied, paths)
    after_prints = fingerprints(after)
    # Without a base the edited model must tell it: what it is with the pristine rows put back. That
    # this is the base is then for the digest over everything to say.
    foreign: list[str] = []
    if base is None:
        ledgers = ledgers_over(edits, _pristine_of_all(edits, pristine, paths))
        restored = put_back(edits, ledgers, after, tied)
        # Only what was put back is hashed anew.
        prints = after_prints | fingerprints(restored)
        # Touched, but of another shape or type than the base's, so that no row can be put back.
        unknown = {name for name in prints if tied.get(name, name) in paths} - restored.keys()
        before = {name: each for name, each in {**after, **restored}.items() if name not in unknown}
    else:
        before, unknown = dict(without_prefix(state_of(base, pristine=True), paths)), set()
        prints = fingerprints(before)
        foreign = _foreign(edits, prints)
        # From a foreign base nothing is computed: it may not even have the rows.
        ledgers = {} if foreign else ledgers_over(
            edits, {path: take(before[path], covered_rows(edits, path)) for path in paths}
        )  # fmt: skip
        # Two names of one weight in either model count as one only where they are equal in the
        # base.
        tied = {
            name: path
            for name, path in {**tied, **tied_to(before, paths)}.items()
            if name in before and path in before and prints[name].sha256 == prints[path].sha256
        }
        # Again, since a base of plain tensors may know of ties that the edited model's file does
        # not.
        _check_one_name(tied, paths)
    expected = {
        path: _with_rows(before[path], ledger, composed(ledger))
        for path, ledger in ledgers.items()
        if path in before
    }
    cast = cast_between(before, after)
    rows = []
    for name in sorted({*before, *after, *ledgers}):
        known = prints[name].sha256 if name in before else None
        if name not in after:
            rows.append(AuditedTensor(name, "missing", known, None))
            continue
        sha256 = after_prints[name].sha256
        if name in unknown:
            note = f"{_kind(after_prints[name])}, expected {_kind(_base_print(edits, tied, name))}"
            rows.append(AuditedTensor(name, "changed otherwise", None, sha256, note))
        elif known is None:
            rows.append(AuditedTensor(name, "added", None, sha256))
        else:
            target = expected.get(tied.get(name, name))
            rows.append(compared(name, before[name], after[name], (known, sha256), target, cast))
    rows = hinted(rows, expected)
    digest = state_digest(prints)
    if base is None and {edit.base.state for edit in edits} != {digest}:
        # That something else was changed is known then, not what: only these can be told.
        rows = [row for row in rows if tied.get(row.name, row.name) in paths]
    return _audit(
        edits, rows, digest, state_digest(after_prints), _copy(before, after, cast), cast, foreign,
        base is not None,
    )  # fmt: skip


def _copy(before: State, after: State, cast: torch.dtype | None) -> str:
    """Return what is said of a copy in another precision: all of it, or some of its tensors."""
    if cast is None:
        return ""
    kind = str(cast).removeprefix("torch.")
    floats = [name for name, each in before.items() if each.dtype in FLOATS and name in after]
    others = [name for name in floats if before[name].dtype == after[name].dtype != cast]
    if not others:
        return f"a {kind} copy of "
    return f"a copy, with {len(floats) - len(others)} of {len(floats)} tensors in {kind}, of "


def _check_one_name(tied: Mapping[str, str], paths: Set[str]) -> None:
    """Raise if edits call one parameter by several names: each alone is not what it becomes."""
    double = [name for name, home in tied.items() if name in paths and home != name]
    if double:
        raise UnsupportedModelError(
            f"edits touch one tied weight under several names, {[*double, tied[double[0]]]}; make "
            "them all at the same path"
        )


def _foreign(edits: Sequence[Recipe], prints: Mapping[str, Fingerprint]) -> list[str]:
    """Return the touched tensors that are not of every edit's base."""
    bases = [item for edit in edits for item in edit.base.tensors.items()]
    return sorted({path for path, wanted in bases if prints.get(path) != wanted})


def _with_rows(tensor: Tensor, ledger: Ledger, rows: Tensor) -> Tensor:
    """Return a copy of a parameter with other values in the rows that a ledger covers."""
    result = tensor.clone()
    result[index_of(ledger.rows)] = rows.to(result)
    return result


def _pristine_of_all(
    edits: Sequence[Recipe], pristine: Mapping[str, Tensor] | None, paths: Set[str]
) -> Mapping[str, Tensor]:
    """Return the pristine rows, if with them the edited model alone can tell its base."""
    states = {edit.base.state for edit in edits}
    if len(states) > 1:
        raise InputError(
            f"{_names(edits)} were made for different bases; give the base model (base=, --base), "
            "which says to which of them the edited model belongs"
        )
    if pristine is None or pristine.keys() != paths or None in states:
        raise InputError(
            "without the base model, an audit needs the pristine rows and the digest of the whole "
            "base; give the base model (base=, --base), or an artifact that was made with "
            "EditArtifact.of(model, edit)"
        )
    return pristine


def put_back(
    edits: Sequence[Recipe], ledgers: Mapping[str, Ledger], after: State, tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the touched tensors of an edited state dict with their pristine rows in place.

    By name, other names of a tied weight (see `tied_to`) included; those that are not there, or
    have not the base's shape and dtype, are left out.
    """
    homes = {**{path: path for path in ledgers}, **tied}
    return {
        name: _with_rows(after[name], ledgers[path], ledgers[path].pristine)
        for name, path in homes.items()
        if name in after
        and tuple(after[name].shape) == _base_print(edits, tied, path).shape
        and after[name].dtype == ledgers[path].pristine.dtype
    }


def _base_print(edits: Sequence[Recipe], tied: Mapping[str, str], name: str) -> Fingerprint:
    """Return what a touched parameter is in the edits' base."""
    path = tied.get(name, name)
    return next(edit.base.tensors[path] for edit in edits if path in edit.base.tensors)


def _kind(print_: Fingerprint) -> str:
    return f"{print_.dtype}{list(print_.shape)}"


def _names(edits: Sequence[Recipe]) -> str:
    names = ", ".join(edit.digest[:12] for edit in edits)
    return f"edit {names}" if len(edits) == 1 else f"the edits {names}"


def _audit(
    edits: Sequence[Recipe], rows: Sequence[AuditedTensor], before: str, after: str,
    copy: str, cast: torch.dtype | None, foreign: Sequence[str], with_base: bool,
) -> Audit:  # fmt: skip
    wrong = [row for row in rows if not row.is_right]
    changed = [row for row in rows if row.verdict == "changed as the edit says"]
    # An edit need not know the digest of its whole base; then it is the given base that is meant.
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
    elif not proven and not with_base:
        sentence = (
            f"NOT proven: the touched tensors are as {_names(edits)} says, but the rest of the "
            "model is not the base's; pass the base model to see which tensors differ"
        )
    elif not proven:
        sentence = (
            f"NOT proven: the model is the given base with {_names(edits)} and nothing else, but "
            "that base differs from the one that was edited in tensors that no edit touches"
        )
    else:
        limit = _rounded(rows, cast)
        sentence = (
            f"Proven: the model is {copy}the {'base' if known else 'given base'} with exactly "
            f"{_names(edits)} and nothing else; {len(changed)} of {len(rows)} tensors changed, as "
            f"the edit{'s say' if len(edits) > 1 else ' says'}{limit}"
        )
    kind = None if cast is None else str(cast).removeprefix("torch.")
    digests = tuple(edit.digest for edit in edits)
    return Audit(proven, printable(sentence), tuple(rows), digests, before, after, kind)


def _rounded(rows: Sequence[AuditedTensor], cast: torch.dtype | None) -> str:
    """Return what a copy in another precision cannot show."""
    rounded = sum(row.note.startswith("rounded") for row in rows)
    kind = str(cast).removeprefix("torch.")
    return f"; {rounded} of them rounded to {kind}, which hides smaller differences" * bool(rounded)
