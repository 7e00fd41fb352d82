"""`salve diff` and `salve bundle`: of several edits."""

from collections.abc import Sequence
from pathlib import Path

from salve_plugin.cli.artifacts import base_of, edits_at
from salve_plugin.cli.origins import note_study, noted_study
from salve_plugin.cli.output import say, show_json, show_table
from salve_plugin.cli.overwriting import check_folder, save
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.source import Where


def diff(ours: str, theirs: str, where: Where, *, as_json: bool) -> bool:
    """Print what differs between two artifacts; return whether nothing does.

    Raises:
        InputError: if something else than an edit lies at a place.
        SalveError: if one cannot be read.
    """
    difference = _edit_at(ours, where).diff(_edit_at(theirs, where))
    if as_json:
        show_json({"same": not difference, **difference.to_json()})
    else:
        say(*str(difference).splitlines())
    return not difference


def bundle(
    members: Sequence[str],
    where: Where,
    out: Path,
    model: str | None,
    checkpoint: Path | None,
    num_classes: int | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Make a bundle and save it.

    Raises:
        InputError: if names are missing or given twice, the edits are of several bases, or
            something else lies in `out` and `force` is not given.
        SalveError: if an edit cannot be read, the base not be built, or the bundle not be written.
    """
    check_folder(out)
    artifacts: dict[str, EditArtifact] = {}
    sources: dict[str, str] = {}
    for member in members:
        name, source = _named(member)
        if name in artifacts:
            raise InputError(f"two members are called {name!r}; name them: NAME=FOLDER")
        artifacts[name], sources[name] = _edit_at(source, where), source
    first = next(iter(artifacts))
    opened = base_of(sources[first], artifacts[first], model, checkpoint, num_classes)
    made = EditBundle.of(opened.hooked, artifacts)
    save(made, out, force=force)
    study = noted_study(sources[first], artifacts[first].digest)
    if study is not None:
        note_study(out, made.digest, study)
    overlaps = [each.to_json() for each in made.composition.overlaps]
    result = {
        "bundle": str(out),
        "digest": made.digest,
        "members": {name: artifact.digest for name, artifact in made.members.items()},
        "overlaps": overlaps,
    }
    if as_json:
        show_json(result)
        return
    rows = [(name, artifact.edit.kind, artifact.digest) for name, artifact in made.members.items()]
    show_table(f"bundle {out}", ("member", "edit", "digest"), rows)
    if overlaps:
        head = ("first", "second", "tensor", "rows", "meeting")
        same = [[each[name] or "all" for name in head] for each in overlaps]
        show_table("members that change the same rows", head, same)
    say(f"Saved in {out} ({made.digest}).")


def _named(member: str) -> tuple[str, str]:
    """Return a member's name, by default that of its folder, and where it is."""
    name, equals, source = member.partition("=")
    # A path may have an equals sign of its own, behind a slash.
    if equals and name and source and "/" not in name:
        return name, source
    return Path(member).resolve().name.lower(), member


def _edit_at(source: str, where: Where) -> EditArtifact:
    kind, shared = edits_at(source, where)
    if not isinstance(shared, EditArtifact):
        raise InputError(f"{source} holds a {kind}; give a single edit, such as a member's folder")
    return shared
