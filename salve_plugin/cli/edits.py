"""`salve alpha-crit` and `salve edit`: what they take, and which options go together."""

from pathlib import Path
from typing import Annotated

import typer

from salve_plugin.cli import editing, removing
from salve_plugin.cli.choosing import Asked, check_alone
from salve_plugin.cli.options import (
    ClassName,
    Force,
    Json,
    Latent,
    Out,
    Rows,
    Skip,
    StudyFolder,
    StudyOrArtifact,
)
from salve_plugin.cli.usage import refuse_idle
from salve_plugin.errors import InputError

commands = typer.Typer()


@commands.command("alpha-crit")
def alpha_crit_command(
    study: StudyOrArtifact,
    class_name: ClassName = None,
    latent: Latent = None,
    rows: Rows = None,
    target: Annotated[str, typer.Option("--target", help="zero, fraction or flip.")] = "flip",
    fraction: Annotated[float, typer.Option("--fraction", help="For --target fraction.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Compute the exact strength at which each recorded image's decision breaks."""
    if target != "fraction":
        refuse_idle(f"it is for --target fraction, not {target}", "fraction")
    asked = Asked(class_name, latent, rows)
    editing.critical(study, asked, target, fraction, as_json=as_json)


@commands.command("edit")
def edit_command(
    study: StudyFolder,
    out: Out,
    class_name: ClassName = None,
    latent: Latent = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="α; by default read off alpha-crit.")
    ] = None,
    rows: Rows = None,
    enhance: Annotated[bool, typer.Option("--enhance", help="Enhance, not suppress.")] = False,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="File of an edit, from the edit bench of an atlas."),
    ] = None,
    n_pictures: Annotated[
        int,
        typer.Option(
            "--pictures",
            min=0,
            max=16,
            help="How many of the study's images travel in the artifact, with Grad-FAM maps.",
        ),
    ] = 3,
    remove: Annotated[
        Path | None,
        typer.Option("--remove", help="Images with what shall go, one subfolder a class."),
    ] = None,
    without: Annotated[
        Path | None,
        typer.Option("--without", help="Images without it; the same names are pairs."),
    ] = None,
    hidden: Annotated[
        bool,
        typer.Option("--hidden", help="Let --remove edit hidden layers, too: takes far longer."),
    ] = False,
    skip_unreadable: Skip = False,
    max_harm: Annotated[
        float, typer.Option("--max-harm", min=0, max=1, help="Accuracy that --remove may cost.")
    ] = 0.01,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make an edit and save it as an artifact; the model itself is not changed."""
    if remove is not None or without is not None:
        if remove is None or without is None:
            raise InputError("--remove and --without go together: images with and without it")
        check_alone(
            "--remove takes out what two folders differ in",
            **{"class": class_name, "latent": latent, "strength": strength, "rows": rows},
            enhance=enhance, recipe=recipe,
        )  # fmt: skip
        refuse_idle("what --remove makes has no latent to draw maps of", "n_pictures")
        removal = removing.Removal(remove, without, max_harm, hidden, skip_unreadable)
        removing.remove(study, out, removal, force=force, as_json=as_json)
        return
    if hidden:
        raise InputError("--hidden goes with --remove and --without, whose images it needs")
    refuse_idle("it goes with --remove and --without", "skip_unreadable", "max_harm")
    asked = Asked(class_name, latent, rows, strength, enhance, recipe)
    editing.make(study, out, asked, n_pictures=n_pictures, force=force, as_json=as_json)
