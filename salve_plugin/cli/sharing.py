"""The commands that read, write and move edit artifacts."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from salve_plugin.cli import artifacts, auditing, comparing, evaluating, hub
from salve_plugin.cli.options import (
    Again,
    Artifact,
    Checkpoint,
    Classes,
    Endpoint,
    Force,
    Json,
    Model,
    Offline,
    Out,
    Revision,
    Skip,
    Subfolder,
)
from salve_plugin.cli.output import show_error
from salve_plugin.cli.usage import refuse_idle
from salve_plugin.errors import SalveError
from salve_plugin.store.hub.push import How
from salve_plugin.store.source import Where

commands = typer.Typer()

CHECKPOINTS = "a .safetensors or .pth file, or a folder with model.safetensors."


@commands.command("apply")
def apply_command(
    artifact: Artifact,
    out: Annotated[Path, typer.Option("--out", help="Edited state dict, .safetensors.")],
    model: Model = None,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Images to evaluate on before and after.")
    ] = None,
    skip_unreadable: Skip = False,
    revision: Revision = None,
    subfolder: Subfolder = None,
    offline: Offline = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply an edit or a bundle, all of it, to its base model and save the edited weights."""
    if data is None:
        refuse_idle("it is about the images of --data", "skip_unreadable")
    where = _where(revision, subfolder, offline)
    options = (model, checkpoint, num_classes)
    artifacts.apply(
        artifact, where, out, *options, data,
        skip_unreadable=skip_unreadable, force=force, as_json=as_json,
    )  # fmt: skip


@commands.command("evaluate")
def evaluate_command(
    artifact: Artifact,
    data: Annotated[Path, typer.Option("--data", help="The images that it was assessed on.")],
    model: Model = None,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    skip_unreadable: Skip = False,
    revision: Revision = None,
    subfolder: Subfolder = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Assess an artifact's edit again and compare with what the artifact says.

    Status 0 means that it is the same, 1 that it could not be measured, 2 that something differs.
    """
    where = _where(revision, subfolder, offline)
    options = (model, checkpoint, num_classes)
    same = evaluating.evaluate(
        artifact, where, data, *options, skip_unreadable=skip_unreadable, as_json=as_json
    )
    if not same:
        raise typer.Exit(2)


@commands.command("revert")
def revert_command(
    artifact: Artifact,
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Edited state dict.")],
    out: Annotated[Path, typer.Option("--out", help="Restored state dict, .safetensors.")],
    model: Model = None,
    num_classes: Classes = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    offline: Offline = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Undo an edit or a bundle, all of it, in a saved model, bit for bit."""
    where = _where(revision, subfolder, offline)
    options = (model, checkpoint, num_classes)
    artifacts.revert(artifact, where, out, *options, force=force, as_json=as_json)


@commands.command("audit")
def audit_command(
    artifacts_: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT...",
            help="Folders or Hub repositories, user/name, of the edits or bundles that should be "
            "in the model.",
        ),
    ],
    edited: Annotated[Path, typer.Option("--edited", help=f"The model in question: {CHECKPOINTS}")],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            help="The base model, likewise; without it the digest over all its tensors is used.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List identical tensors, too.")] = False,
    revision: Revision = None,
    subfolder: Subfolder = None,
    offline: Offline = False,
    force_download: Again = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Prove that a model is its base with exactly these edits and nothing else, or say what is not.

    Status 0 means proven, 1 not proven, 2 that nothing could be compared.
    """
    where = _where(revision, subfolder, offline, force_download, endpoint)
    audited = partial(auditing.audit, artifacts_, where, base, edited, every=every, as_json=as_json)
    _exit_by(audited, as_json=as_json)


@commands.command("diff")
def diff_command(
    ours: Artifact, theirs: Artifact, offline: Offline = False, as_json: Json = False
) -> None:
    """Show what differs between two edits: fields of their manifests, elements of their tensors.

    Status 0 means that nothing does, 1 that something does, 2 that they could not be compared.
    """
    where = _where(None, None, offline)
    _exit_by(partial(comparing.diff, ours, theirs, where, as_json=as_json), as_json=as_json)


@commands.command("bundle")
def bundle_command(
    members: Annotated[
        list[str],
        typer.Argument(
            metavar="MEMBER...",
            help="Edits of one base: folders or repositories, or NAME=FOLDER to name them.",
        ),
    ],
    out: Out,
    model: Model = None,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    offline: Offline = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make one bundle of several edits of one base, which apply and revert together."""
    options = (model, checkpoint, num_classes)
    where = _where(None, None, offline)
    comparing.bundle(members, where, out, *options, force=force, as_json=as_json)


@commands.command("inspect")
def inspect_command(
    artifact: Artifact,
    revision: Revision = None,
    subfolder: Subfolder = None,
    offline: Offline = False,
    force_download: Again = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Verify an edit, bundle or dictionary and show what it says about itself."""
    where = _where(revision, subfolder, offline, force_download, endpoint)
    artifacts.inspect(artifact, where, as_json=as_json)


@commands.command("verify")
def verify_command(
    artifact: Artifact,
    revision: Revision = None,
    subfolder: Subfolder = None,
    offline: Offline = False,
    force_download: Again = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Check every byte of an edit, bundle or dictionary; what is wrong ends with status 1."""
    where = _where(revision, subfolder, offline, force_download, endpoint)
    hub.verify(artifact, where, as_json=as_json)


@commands.command("pull")
def pull_command(
    repo: Annotated[str, typer.Argument(help="Hub repository, user/name.")],
    out: Out,
    revision: Revision = None,
    subfolder: Subfolder = None,
    offline: Offline = False,
    force_download: Again = False,
    endpoint: Endpoint = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Get an edit, bundle or dictionary from the Hub, verify it and write it into a folder.

    For a private repository set HF_TOKEN or log in with `hf auth login`.
    """
    where = _where(revision, subfolder, offline, force_download, endpoint)
    hub.pull(repo, where, out, force=force, as_json=as_json)


@commands.command("push")
def push_command(
    folder: Annotated[Path, typer.Argument(help="Folder of an edit, bundle or dictionary.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, user/name; created if missing.")],
    subfolder: Annotated[
        str | None, typer.Option("--subfolder", help="Inside the repository.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch to commit to, by default main.")
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="What a new repository is, and an old one must be."
        ),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Title of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Make a pull request.")] = False,
    tag: Annotated[str | None, typer.Option("--tag", help="Name for the commit.")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Verify an edit, bundle or dictionary and put it on the Hub in one commit.

    Needs a token with write access: set HF_TOKEN or log in with `hf auth login`.
    """
    how = How(
        subfolder=subfolder,
        revision=revision,
        private=private,
        commit_message=message,
        create_pr=create_pr,
        tag=tag,
        endpoint=endpoint,
    )
    hub.push(folder, repo, how, as_json=as_json)


def _exit_by(agreed: Callable[[], bool], *, as_json: bool) -> None:
    """Compare; exit with 1 if what was compared does not agree, with 2 if it could not be."""
    try:
        agrees = agreed()
    except SalveError as error:
        show_error(error, as_json=as_json)
        raise typer.Exit(2) from error
    if not agrees:
        raise typer.Exit(1)


def _where(
    revision: str | None,
    subfolder: str | None,
    offline: bool,
    force_download: bool = False,
    endpoint: str | None = None,
) -> Where:
    """Return the options of a command that reads as the library's own arguments."""
    return Where(
        revision=revision,
        subfolder=subfolder,
        local_files_only=offline,
        force_download=force_download,
        endpoint=endpoint,
    )
