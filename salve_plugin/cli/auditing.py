"""`salve audit`: whether a model is its base with exactly these edits and nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from salve_plugin.cli.artifacts import edits_at
from salve_plugin.cli.output import say, show_json, show_table
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.audit import Audit
from salve_plugin.share.audited_tensor import AuditedTensor
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.bundle_application import audit_members
from salve_plugin.store.source import Where

_SHORT = 12
"""How many digits of a digest the table shows."""


def audit(
    sources: Sequence[str],
    where: Where,
    base: Path | None,
    edited: Path,
    *,
    every: bool,
    as_json: bool,
) -> bool:
    """Print the verdict, the tensors and the digests; return whether it is proven."""
    members: dict[str, EditArtifact] = {}
    for source in sources:
        members |= _named(source, edits_at(source, where)[1])
    result = audit_members(members, base, edited)
    if as_json:
        artifacts = {name: artifact.digest for name, artifact in members.items()}
        show_json({**result.to_json(), "artifacts": artifacts})
    else:
        _show(result, every=every)
    return result.proven


def _named(source: str, shared: EditArtifact | EditBundle) -> Mapping[str, EditArtifact]:
    if isinstance(shared, EditArtifact):
        return {source: shared}
    return {f"{source}/{name}": member for name, member in shared.members.items()}


def _show(result: Audit, *, every: bool) -> None:
    say(result.sentence)
    same = [tensor for tensor in result.tensors if tensor.verdict == "identical"]
    shown = [tensor for tensor in result.tensors if every or tensor.verdict != "identical"]
    if shown:
        columns = ("tensor", "verdict", "before", "after", "note")
        show_table("tensors", columns, [_row(tensor) for tensor in shown])
    if same and not every:
        say(f"{len(same)} tensors are identical (--all lists them).")
    say(f"base, all tensors: {result.base_digest}", f"edited, all tensors: {result.edited_digest}")


def _row(tensor: AuditedTensor) -> tuple[str, ...]:
    before, after = ((digest or "")[:_SHORT] for digest in (tensor.before, tensor.after))
    return tensor.name, tensor.verdict, before, after, tensor.note
