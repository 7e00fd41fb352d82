"""`salve explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salve_plugin.cli.artifacts import base_of
from salve_plugin.cli.choosing import Asked, Evidence, label_of
from salve_plugin.cli.images import open_image, unreadable
from salve_plugin.cli.origins import artifact_in, check_own, noted_study
from salve_plugin.cli.output import say, show_json, show_note, show_table
from salve_plugin.cli.overwriting import check_file, check_folder, check_outside
from salve_plugin.cli.pictures import strongest
from salve_plugin.cli.study import OpenModel, Study, made_folder
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import AttributionError, InputError, ReadError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.checkpoint import in_short
from salve_plugin.store.files import write_atomically
from salve_plugin.validate.heat_maps import Explained
from salve_plugin.validate.maximization import Maximization, maximize
from salve_plugin.validate.pictures import Scale

_STRONGEST_IMAGES = 3
"""Beside what activation maximization makes."""


def explain(
    folder: Path,
    images: Sequence[Path],
    out: Path,
    asked: Asked,
    checkpoint: Path | None,
    *,
    skip_unreadable: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write for each image a picture of it beside its Grad-FAM map, and one of a study's latent.

    The latent's picture has what activation maximization makes of it, beside the images of the
    study that show it most. One scale holds for all pictures of the command.

    Args:
        folder: of a study, or of an artifact, whose latent it is then.
        images: to explain.
        out: folder for the pictures.
        asked: class or latent, of a study.
        checkpoint: of an artifact's base, where it is not known.
        skip_unreadable: whether images that cannot be read are left out.
        force: whether other pictures may be overwritten.
        as_json: whether results are for a program.

    Raises:
        InputError: if there is no such class or latent, or another picture lies there.
        AttributionError: if the model has no map or patch grid to look at.
        SalveError: if the study or an image cannot be read, or a picture cannot be written.
    """
    artifact = artifact_in(folder)
    check_folder(out)
    evidence, why = None, ""
    if artifact is None:
        study = Study.load(folder)
        check_outside(out, [study.data])
        if checkpoint is not None:
            raise InputError("--checkpoint is for an artifact; a study knows its own")
        # Last of what can be refused: it builds the model.
        evidence = Evidence.of(study)
        chosen, opened, dictionary = evidence.latent(asked), evidence.opened, evidence.dictionary
        why = _why(evidence, asked, chosen)
    else:
        check_own(artifact, asked.latent, asked.class_name)
        opened, dictionary = _of_artifact(folder, artifact, checkpoint)
        chosen = artifact.edit.latent
    left_out = unreadable(images) if skip_unreadable else []
    if left_out:
        show_note(f"Left out: {len(left_out)} unreadable images ({in_short(left_out)}).")
    paths = [path for path in dict.fromkeys(images) if str(path) not in left_out]
    if not paths:
        raise ReadError(
            f"none of the {len(images)} images can be read ({in_short(left_out)}); give others"
        )
    # One at a time: they need not be of one size once they are transformed.
    inputs = (opened.transform(open_image(path))[None] for path in paths)
    explained = list(Explained.each(opened.hooked, dictionary, inputs, chosen))
    most, note = (
        (None, None) if evidence is None else _shown_most(evidence, asked.class_name, chosen)
    )
    made_folder(out)
    # All pictures of one command in one scale, or equal colours would mean different numbers.
    maps = [one.maps for one in explained] + ([most.explained.maps] if most else [])
    scale = Scale.of(*maps, signed=True)
    written = []
    for number, (path, one) in enumerate(zip(paths, explained, strict=True)):
        picture_path = out / f"{number:03d}-{path.stem}-latent{chosen}.png"
        title = path.name if asked.class_name is None else f"{asked.class_name}: {path.name}"
        _write(picture_path, one.sheet([title], columns=2, scale=scale), force=force)
        written.append(
            {
                "image": str(path),
                "overlay": str(picture_path),
                "latent": float(one.values),
                "most": float(one.maps.max()),
                "least": float(one.maps.min()),
            }
        )
    latent_path = out / f"latent{chosen}.png" if most else None
    if latent_path and most:
        picture = most.explained.latent_sheet(most.names, most.maximization, scale=scale)
        _write(latent_path, picture, force=force)
    if as_json:
        show_json(
            {
                "latent": chosen, "left_out": left_out, "images": written, "note": note,
                "picture": str(latent_path) if latent_path else None,
            }
        )  # fmt: skip
        return
    rows = [tuple(each.values()) for each in written]
    columns = ("image", "picture", "latent", "most", "least")
    show_table(f"Grad-FAM of latent {chosen}{why}", columns, rows)
    if note or latent_path:
        say(note or f"{latent_path}: what drives latent {chosen} most")


def _why(evidence: Evidence, asked: Asked, latent: int) -> str:
    """Return why it is this latent: `salve features` may show another one first."""
    label = evidence.label(asked)
    if label is None or asked.latent is not None:
        return ""
    why = f", which `salve edit` takes for {asked.class_name}"
    dominant = evidence.features.dominant(label)
    return why if dominant == latent else f"{why} (its dominant latent is {dominant})"


@dataclass(frozen=True, eq=False)
class _ShownMost:
    """The images that show a latent most, what they are called, and what was made to."""

    explained: Explained
    names: list[str]
    maximization: Maximization


def _shown_most(
    evidence: Evidence, class_name: str | None, latent: int
) -> tuple[_ShownMost | None, str | None]:
    """Return what shows a latent most, or why there is nothing: the study's images may be gone."""
    label = None if class_name is None else label_of(evidence.features, class_name)
    try:
        images, names, sign = strongest(
            evidence.study, evidence.opened, evidence.acts, evidence.dictionary, latent, label,
            _STRONGEST_IMAGES,
        )  # fmt: skip
        explained = Explained.of(evidence.opened.hooked, evidence.dictionary, images, latent)
        channels, height, width = images.shape[1:]
        maximization = maximize(
            evidence.opened.hooked, evidence.dictionary, latent, sign=sign,
            size=(channels, height, width),
        )  # fmt: skip
    except (ReadError, InputError, AttributionError) as error:
        return None, f"no picture of what drives latent {latent} most: {error}"
    return _ShownMost(explained, names, maximization), None


def _write(path: Path, picture: bytes, *, force: bool) -> None:
    check_file(path, picture, force=force)
    write_atomically(path, picture)


def _of_artifact(
    folder: Path, artifact: EditArtifact, checkpoint: Path | None
) -> tuple[OpenModel, Dictionary]:
    """Return base model and dictionary of an artifact; the latter travels with it, or is noted."""
    study = noted_study(folder, artifact.digest)
    if artifact.dictionary is not None or study is None:
        dictionary = artifact.load_dictionary()
    else:
        dictionary = Dictionary.from_pretrained(study.dictionary_folder)
        if dictionary.digest != artifact.edit.dictionary_digest:
            raise InputError(
                f"{study.folder} has another dictionary by now than the one that the artifact in "
                f"{folder} was made with; give the study and a --latent, or make the edit again"
            )
    return base_of(folder, artifact, None, checkpoint, None), dictionary
