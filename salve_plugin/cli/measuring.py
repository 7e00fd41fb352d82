"""`salve quality`: how good a study's dictionary is, beside its controls."""

from pathlib import Path

from salve_plugin.cli.output import say, show_json
from salve_plugin.cli.overwriting import check_file
from salve_plugin.cli.study import Study
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.site import HEAD_INPUT
from salve_plugin.validate.quality import quality


def measure(
    folder: Path, figure: Path | None, *, seed: int, batch_size: int, force: bool, as_json: bool
) -> None:
    """Print every measure, and draw the figure if one is asked for.

    Raises:
        InputError: if no image is held out, or another figure lies there.
        SalveError: if the study cannot be read, its model or its images are others by now, or the
            figure cannot be written.
    """
    study = Study.load(folder)
    if figure is not None:
        check_file(figure, force=force, option="--figure")
        _check_format(figure)
    acts = Activations.load(study.activations_folder)
    dictionary = Dictionary.from_pretrained(study.dictionary_folder)
    opened = study.open(acts)
    # At the head's input a reconstruction is spliced in closed form; elsewhere it is run.
    loader = None
    if dictionary.site.name != HEAD_INPUT:
        images = opened.images(Path(study.data), labels=acts.classes, left_out=study.left_out)
        loader = images.batches(batch_size)
    measured = quality(dictionary, acts, hooked=opened.hooked, loader=loader, seed=seed)
    if figure is not None:
        measured.figure(figure)
    if as_json:
        show_json({"study": str(folder), **measured.to_json()})
        return
    say(*measured.table().splitlines())


def _check_format(path: Path) -> None:
    """Refuse a figure that could not be drawn, before anything is measured."""
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise InputError(f"--figure {path}: choose one of the endings {sorted(known)}")
