"""`salve demo`."""

from pathlib import Path
from typing import TYPE_CHECKING

from salve_plugin.cli.output import console, say, show_json
from salve_plugin.cli.study import made_folder
from salve_plugin.demo.progress import Steps
from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from salve_plugin.demo.photographs import SubjectOutcome


def run(
    out: Path,
    *,
    pretrained: bool,
    model: str | None,
    data: Path | None,
    seeds: int,
    as_json: bool,
) -> None:
    """Run the demo on digits, on photographs, or on the user's own model and images.

    Raises:
        InputError: if only one of `model` and `data` is given.
        SalveError: if something cannot be read or written.
    """
    if (model is None) != (data is None):
        raise InputError("--model and --data go together: a timm model and an image folder")
    made_folder(out)
    # Standard output is the one JSON object's then.
    steps = Steps(to_stderr=as_json)
    if model is not None and data is not None:
        from salve_plugin.cli.study import ModelSpec
        from salve_plugin.demo.photographs import run_own

        with steps.step(f"load {model} with its own weights"):
            opened = ModelSpec(model).open()
        images = opened.images(data)
        outcomes = run_own(out, opened.hooked, images.classes, images.batches(64), steps=steps)
        _show_outcomes(outcomes, as_json)
    elif pretrained:
        from salve_plugin.demo.photographs import run_photographs

        _show_outcomes(run_photographs(out, steps=steps), as_json)
    else:
        _digits(out, seeds, steps, as_json)
    if not as_json:
        say(f"Everything is in {out}/.")


def _show_outcomes(outcomes: "list[SubjectOutcome]", as_json: bool) -> None:
    if as_json:
        show_json({"outcomes": [outcome.to_json() for outcome in outcomes]})
        return
    from salve_plugin.demo.report import print_outcomes

    print_outcomes(outcomes, console())


def _digits(out: Path, seeds: int, steps: Steps, as_json: bool) -> None:
    from salve_plugin.demo.report import print_network, print_summary
    from salve_plugin.demo.run import run_digits

    results = run_digits(out, seeds=seeds, steps=steps)
    if as_json:
        show_json({result.name: result.to_json() for result in results})
        return
    for result in results:
        print_network(result, console())
    print_summary(results, console())
    for result in results:
        address = (out / result.name / "atlas" / "index.html").resolve().as_uri()
        say(f"Atlas of {result.name}: {address}")
