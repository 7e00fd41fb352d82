"""`salve discover`, `features` and `explain`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from salve_plugin.cli.images import open_image
from salve_plugin.cli.output import console, saying_how_to_go_on, show_json, show_table
from salve_plugin.cli.overwriting import check_file, check_outside, save
from salve_plugin.cli.pictures import strongest
from salve_plugin.cli.study import ModelSpec, OpenModel, Study, made_folder
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features, profile
from salve_plugin.discover.learners import learners
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.run import Run
from salve_plugin.errors import AttributionError, InputError, ReadError
from salve_plugin.store.files import write_atomically
from salve_plugin.validate.heat_maps import Explained
from salve_plugin.validate.maximization import Maximization, maximize
from salve_plugin.validate.pictures import Scale

_STRONGEST_IMAGES = 3
"""Beside what activation maximization makes."""


def model_spec(model: str, checkpoint: Path | None, num_classes: int | None) -> ModelSpec:
    """Return how to build a model named on the command line."""
    path = None if checkpoint is None else str(checkpoint.resolve())
    return ModelSpec(model, path, num_classes)


def discover(
    spec: ModelSpec,
    data: Path,
    out: Path,
    *,
    site: str,
    latents: int | None,
    learner: str,
    l0: float | None,
    seed: int,
    batch_size: int,
    force: bool,
    as_json: bool,
) -> None:
    """Record, fit, profile, and leave a study in `out`.

    Raises:
        InputError: if another study is there, or another dictionary, and `force` is not given.
        SalveError: if the model cannot be built, an image cannot be read, or the learner and its
            settings do not go together.
    """
    check_outside(out, [data])
    study = Study(out, spec, str(data.resolve()))
    asked = {"learner": learner, "n_latents": latents, "target_l0": l0, "seed": seed}
    different = study.replaced(site, asked, force=force)
    opened = spec.open()
    opened.hooked.site(site)
    images = opened.images(data)
    made_folder(out)
    study.remove_other(different)
    with saying_how_to_go_on():
        acts = record(
            opened.hooked,
            images.batches(batch_size),
            site,
            folder=study.activations_folder,
            progress=not as_json,
        )
        run = Run(checkpoint=study.checkpoint_folder, progress=not as_json)
        dictionary = fit(acts, learner, n_latents=latents, target_l0=l0, seed=seed, run=run)
    with suppress(OSError):
        study.checkpoint_folder.rmdir()  # empty by now, if it was made
    save(dictionary, study.dictionary_folder, force=force)
    study.save()
    class_features = profile(dictionary, acts)
    meta = dictionary.meta
    summary: dict[str, Any] = {
        "study": str(out),
        "model": spec.model,
        "site": site,
        "images": acts.n_images,
        "rows": acts.n_rows,
        "classes_with_images": int((class_features.counts > 0).sum()),
        "learner": learner,
        "latents": dictionary.n_latents,
        "held_out_r2": meta["held_out_r2"],
        "l0": meta["l0"],
        "dead_share": meta["dead_share"],
        "dictionary_sha256": dictionary.digest,
    }
    if as_json:
        show_json(summary)
        return
    show_table("discovered", ("what", "value"), [*summary.items()])
    console().print(f"Next: salve features {out}", highlight=False)


def list_learners(*, as_json: bool) -> None:
    """Show every learner with its options, and where it is from."""
    listed = learners()
    if as_json:
        show_json({"learners": [{**vars(info), "options": dict(info.options)} for info in listed]})
        return
    rows = [(info.name, info.summary, " ".join(info.options), info.source) for info in listed]
    show_table("learners", ("name", "how", "options", "source"), rows)


def features(folder: Path, class_name: str | None, top: int, *, as_json: bool) -> None:
    """Show dominant and ranked latents of one class or all."""
    study = Study.load(folder)
    acts, dictionary, class_features = study.parts()
    study.check_checkpoint(acts)
    labels = (
        [label_of(class_features, class_name)]
        if class_name is not None
        else [int(label) for label in (class_features.counts > 0).nonzero()[:, 0]]
    )
    images = torch.bincount(acts.image_labels().long(), minlength=len(class_features.counts))
    summaries = [
        _class_summary(class_features, label, min(top, dictionary.n_latents), int(images[label]))
        for label in labels
    ]
    if as_json:
        show_json({"study": str(folder), "classes": summaries})
        return
    rows = [
        (
            summary["name"],
            summary["images"],
            summary["dominant"]["latent"],
            summary["dominant"]["mean"],
            ", ".join(
                f"{ranked['latent']} ({ranked['score']:.3f})" for ranked in summary["ranked"]
            ),
        )
        for summary in summaries
    ]
    columns = ("class", "images", "dominant latent", "its mean", "most specific (score)")
    show_table(f"latents of {folder}", columns, rows)


def _class_summary(class_features: Features, label: int, top: int, images: int) -> dict[str, Any]:
    dominant = class_features.dominant(label)
    return {
        "class": label,
        "name": class_features.classes[label] if class_features.classes else str(label),
        "images": images,
        "dominant": {"latent": dominant, "mean": float(class_features.means[label, dominant])},
        "ranked": [
            {
                "latent": latent,
                "mean": float(class_features.means[label, latent]),
                "score": float(class_features.scores[label, latent]),
            }
            for latent in class_features.ranked(label, top)
        ],
    }


def label_of(class_features: Features, class_name: str) -> int:
    """Return the class of a name, or of an index where no class has that name.

    Raises:
        InputError: if there is no such class, or it has no images.
    """
    named = class_features.classes is not None and class_name in class_features.classes
    plain_number = class_name.isascii() and class_name.isdigit()
    return class_features.class_index(int(class_name) if plain_number and not named else class_name)


def latent_of(
    class_features: Features, dictionary: Dictionary, class_name: str | None, latent: int | None
) -> int:
    """Return the latent that was named, or the dominant one of the class.

    Raises:
        InputError: if neither is given, or the latent does not exist.
    """
    if latent is None:
        if class_name is None:
            raise InputError("name a class (--class) or a latent (--latent)")
        return class_features.dominant(label_of(class_features, class_name))
    if not 0 <= latent < dictionary.n_latents:
        raise InputError(
            f"latent {latent} does not exist: the dictionary has {dictionary.n_latents}, 0 to "
            f"{dictionary.n_latents - 1}"
        )
    return latent


def explain(
    folder: Path,
    images: Sequence[Path],
    out: Path,
    class_name: str | None,
    latent: int | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write for each image a picture of it beside its Grad-FAM map, and one of the latent.

    The latent's picture has what activation maximization makes of it, beside the images of the
    study that show it most. One scale holds for all pictures of the command.

    Raises:
        InputError: if there is no such class or latent, or another picture lies there.
        AttributionError: if the model has no map or patch grid to look at.
        SalveError: if the study or an image cannot be read, or a picture cannot be written.
    """
    study = Study.load(folder)
    check_outside(out, [study.data])
    acts, dictionary, class_features = study.parts()
    chosen = latent_of(class_features, dictionary, class_name, latent)
    opened = study.open(acts)
    explained = [
        Explained.of(opened.hooked, dictionary, opened.transform(open_image(path))[None], chosen)
        for path in images
    ]
    label = None if class_name is None else label_of(class_features, class_name)
    most, note = _shown_most(study, opened, acts, dictionary, chosen, label)
    made_folder(out)
    maps = [one.maps for one in explained] + ([most.explained.maps] if most else [])
    scale = Scale.of(*maps, signed=True)
    written = []
    for number, (path, one) in enumerate(zip(images, explained, strict=True)):
        picture_path = out / f"{number:03d}-{path.stem}-latent{chosen}.png"
        title = path.name if class_name is None else f"{class_name}: {path.name}"
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
    latent_path = out / f"latent{chosen}.png"
    if most:
        picture = most.explained.latent_sheet(most.names, most.maximization, scale=scale)
        _write(latent_path, picture, force=force)
    if as_json:
        path_text = str(latent_path) if most else None
        show_json({"latent": chosen, "images": written, "picture": path_text, "note": note})
        return
    rows = [tuple(picture.values()) for picture in written]
    columns = ("image", "picture", "latent", "most", "least")
    show_table(f"Grad-FAM of latent {chosen}", columns, rows)
    console().print(note or f"{latent_path}: what drives latent {chosen} most", soft_wrap=True)


@dataclass(frozen=True, eq=False)
class _ShownMost:
    """The images that show a latent most, what they are called, and what was made to."""

    explained: Explained
    names: list[str]
    maximization: Maximization


def _shown_most(
    study: Study,
    opened: OpenModel,
    acts: Activations,
    dictionary: Dictionary,
    latent: int,
    label: int | None,
) -> tuple[_ShownMost | None, str | None]:
    """Return what shows a latent most, or why there is nothing: the study's images may be gone."""
    try:
        images, names, sign = strongest(
            study, opened, acts, dictionary, latent, label, _STRONGEST_IMAGES
        )
        explained = Explained.of(opened.hooked, dictionary, images, latent)
        channels, height, width = images.shape[1:]
        maximization = maximize(
            opened.hooked, dictionary, latent, sign=sign, size=(channels, height, width)
        )
    except (ReadError, InputError, AttributionError) as error:
        return None, f"no picture of what drives latent {latent} most: {error}"
    return _ShownMost(explained, names, maximization), None


def _write(path: Path, picture: bytes, *, force: bool) -> None:
    check_file(path, picture, force=force)
    write_atomically(path, picture)
