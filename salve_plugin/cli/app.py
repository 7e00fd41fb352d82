"""The `salve` command line: one command for each step of the way."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from salve_plugin.cli import (
    atlas,
    demo,
    edits,
    explaining,
    measuring,
    origins,
    sharing,
    studies,
)
from salve_plugin.cli.choosing import Asked
from salve_plugin.cli.options import (
    Checkpoint,
    Classes,
    ClassName,
    Force,
    Json,
    Latent,
    Out,
    Skip,
    StudyFolder,
    StudyOrArtifact,
)
from salve_plugin.cli.output import plain_warnings, show_error, show_json
from salve_plugin.cli.usage import Once, refuse_idle, usage_message
from salve_plugin.errors import SalveError

app = typer.Typer(
    name="salve",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=Once,
)


def _show_version(asked: bool) -> bool:
    if asked:
        from salve_plugin import __version__

        typer.echo(f"salve {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def options_of_all(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Find, validate and permanently edit the features of a vision model."""


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path(
        "salve-demo"
    ),
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Photographs on a pretrained ImageNet network.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="timm model with its own weights (needs the Hub).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Image folder to use with --model.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Dictionaries a network.")] = 10,
    as_json: Json = False,
) -> None:
    """Run the whole method on real networks and real data; writes tables, pictures, artifacts."""
    if pretrained:
        refuse_idle("--pretrained has photographs of its own", "model", "data")
    if pretrained or model is not None or data is not None:
        refuse_idle("dictionaries of several seeds are of the digits", "seeds")
    demo.run(out, pretrained=pretrained, model=model, data=data, seeds=seeds, as_json=as_json)


@app.command("discover")
def discover_command(
    model: Annotated[str, typer.Option("--model", help="timm model name.")],
    data: Annotated[Path, typer.Option("--data", help="Images, one subfolder a class.")],
    out: Out,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    site: Annotated[str, typer.Option("--site", help="Hook point.")] = "unembed.hook_in",
    latents: Annotated[
        int | None, typer.Option("--latents", min=1, help="Size of the dictionary.")
    ] = None,
    learner: Annotated[
        str, typer.Option("--learner", help="How to learn it: see `salve learners`.")
    ] = "l1",
    l0: Annotated[
        float | None, typer.Option("--l0", help="Active latents of a row to reach.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the dictionary.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    skip_unreadable: Skip = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Record a model's activations on an image folder and learn a dictionary; resumable."""
    spec = studies.model_spec(model, checkpoint, num_classes)
    studies.discover(
        spec, data, out, site=site, latents=latents, learner=learner, l0=l0,
        seed=seed, batch_size=batch_size, skip_unreadable=skip_unreadable, force=force,
        as_json=as_json,
    )  # fmt: skip


@app.command("learners")
def learners_command(as_json: Json = False) -> None:
    """List the ways to learn a dictionary, their options and sources."""
    studies.list_learners(as_json=as_json)


@app.command("features")
def features_command(
    study: StudyFolder,
    class_name: ClassName = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Latents to list a class.")] = 3,
    as_json: Json = False,
) -> None:
    """List the latents that each class depends on."""
    studies.features(study, class_name, top, as_json=as_json)


@app.command("quality")
def quality_command(
    study: StudyFolder,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Where to draw it, as PNG, PDF or SVG.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the controls.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite what lies at --figure, whatever it is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the dictionary on held-out images, beside controls that need no training."""
    measuring.measure(study, figure, seed=seed, batch_size=batch_size, force=force, as_json=as_json)


@app.command("explain")
def explain_command(
    study: StudyOrArtifact,
    images: Annotated[list[Path], typer.Argument(help="Images to explain.")],
    out: Out,
    class_name: ClassName = None,
    latent: Latent = None,
    checkpoint: Checkpoint = None,
    skip_unreadable: Skip = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show where in images a latent comes from, and what drives it most, as PNG."""
    asked = Asked(class_name, latent)
    explaining.explain(
        study, images, out, asked, checkpoint,
        skip_unreadable=skip_unreadable, force=force, as_json=as_json,
    )  # fmt: skip


@app.command("atlas")
def atlas_command(
    study: Annotated[
        Path, typer.Argument(help="Folder that `salve discover` made, or an edit's artifact.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write; by default STUDY/atlas or ARTIFACT-atlas."),
    ] = None,
    maps: Annotated[
        int, typer.Option("--maps", min=0, help="Latents whose images get Grad-FAM maps.")
    ] = 64,
    maximize: Annotated[
        int,
        typer.Option("--maximize", min=0, help="Latents that get an image made to drive them."),
    ] = 0,
    bench_images: Annotated[
        int, typer.Option("--bench-images", min=1, help="Recorded images on the edit bench.")
    ] = 2000,
    quality: Annotated[
        bool, typer.Option(help="Measure the dictionary beside its controls.")
    ] = True,
    evidence: Annotated[
        bool, typer.Option(help="Measure what speaks for each latent, beside chance.")
    ] = True,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a study as pages that open from disk: classes, latents, and a bench for edits."""
    if origins.is_artifact(study):
        of_study = ("maps", "maximize", "bench_images", "quality", "evidence")
        reason = "an artifact's page shows what travels with it; give the study that it is from"
        refuse_idle(reason, *of_study)
    atlas.make(
        study, out, mapped=maps, maximized=maximize, bench_images=bench_images,
        with_quality=quality, with_evidence=evidence, force=force, as_json=as_json,
    )  # fmt: skip


app.add_typer(edits.commands)
app.add_typer(sharing.commands)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; an expected error ends it with its message and status 1.

    What the command line itself refuses ends with status 2.

    Args:
        arguments: those of the command line by default.

    Raises:
        SystemExit: always, with the command's status.
    """
    as_json = "--json" in (sys.argv if arguments is None else arguments)
    try:
        with plain_warnings():
            # With --json, not standalone: typer would print what it refuses itself, and not as
            # JSON.
            status = app(args=arguments, prog_name="salve", standalone_mode=not as_json)
    except SalveError as error:
        show_error(error, as_json=as_json)
        raise SystemExit(1) from error
    except Exception as error:
        usage = usage_message(error) if as_json else None
        if usage is None:
            raise
        show_json({"error": "UsageError", "message": usage})
        raise SystemExit(2) from error
    raise SystemExit(status or 0)
