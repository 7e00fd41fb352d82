"""`salve explain`."""

from collections.abc import Sequence
from pathlib import Path

from salve_plugin.cli.artifacts import base_of
from salve_plugin.cli.choosing import Asked, Evidence
from salve_plugin.cli.images import open_image, unreadable
from salve_plugin.cli.origins import artifact_in, check_own, noted_study
from salve_plugin.cli.output import show_json, show_note, show_table
from salve_plugin.cli.overwriting import check_file, check_folder, check_outside
from salve_plugin.cli.study import OpenModel, Study, made_folder
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.checkpoint import in_short
from salve_plugin.store.files import write_atomically


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
    """Write one Grad-FAM overlay an image.

    Args:
        folder: of a study, or of an artifact, whose latent it is then.
        images: to explain.
        out: folder for the overlays.
        asked: class or latent, of a study.
        checkpoint: of an artifact's base, where it is not known.
        skip_unreadable: whether images that cannot be read are left out.
        force: whether other pictures may be overwritten.
        as_json: whether results are for a program.

    Raises:
        InputError: if there is no such class or latent, or another picture lies there.
        AttributionError: if the model has no map or patch grid to look at.
        SalveError: if the study or an image cannot be read, or an overlay cannot be written.
    """
    from salve_plugin.validate.grad_fam import LayerGradFam
    from salve_plugin.validate.pictures import overlay, png_bytes

    artifact = artifact_in(folder)
    check_folder(out)
    if artifact is None:
        study = Study.load(folder)
        check_outside(out, [study.data])
        if checkpoint is not None:
            raise InputError("--checkpoint is for an artifact; a study knows its own")
        evidence = Evidence.of(study)
        chosen, opened, dictionary = evidence.latent(asked), evidence.opened, evidence.dictionary
    else:
        check_own(artifact, asked.latent, asked.class_name)
        opened, dictionary = _of_artifact(folder, artifact, checkpoint)
        chosen = artifact.edit.latent
    fam = LayerGradFam.of(opened.hooked, dictionary)
    left_out = unreadable(images) if skip_unreadable else []
    if left_out:
        show_note(f"Left out: {len(left_out)} unreadable images ({in_short(left_out)}).")
    pictures = {
        path: opened.transform(open_image(path)) for path in images if str(path) not in left_out
    }
    made_folder(out)
    written = []
    for number, (path, picture) in enumerate(pictures.items()):
        heat = fam.attribute(picture[None], target=chosen)[0]
        overlay_path = out / f"{number:03d}-{path.stem}-latent{chosen}.png"
        data = png_bytes(overlay(picture, heat))
        check_file(overlay_path, data, force=force)
        write_atomically(overlay_path, data)
        written.append(
            {
                "image": str(path),
                "overlay": str(overlay_path),
                "most": float(heat.max()),
                "least": float(heat.min()),
            }
        )
    if as_json:
        show_json({"latent": chosen, "left_out": left_out, "images": written})
        return
    rows = [tuple(each.values()) for each in written]
    show_table(f"Grad-FAM of latent {chosen}", ("image", "overlay", "most", "least"), rows)


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
