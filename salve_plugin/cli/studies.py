"""`salve discover`, `learners` and `features`."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from salve_plugin.cli.choosing import label_of
from salve_plugin.cli.images import unusable
from salve_plugin.cli.output import say, saying_how_to_go_on, show_json, show_note, show_table
from salve_plugin.cli.overwriting import check_outside, save
from salve_plugin.cli.study import ModelSpec, Study, made_folder
from salve_plugin.discover.features import Features, profile
from salve_plugin.discover.learners import learners
from salve_plugin.discover.learners.base import Solver
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.rows import Moments, held_out
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.settings import FitSettings
from salve_plugin.site import Site
from salve_plugin.store.checkpoint import in_short


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
    skip_unreadable: bool,
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
    asked: dict[str, Any] = {
        "learner": learner,
        "n_latents": latents,
        "target_l0": l0,
        "seed": seed,
    }
    # Cheapest first: what is wrong with the options shows before an image is looked at, what lies
    # at --out before the model is built, and what the learner refuses before anything is recorded.
    FitSettings(options={}, **asked).rule()
    left_out = left_out_of(data, skip_unreadable, as_json=as_json)
    study = Study(out, spec.pinned(), str(data.resolve()), tuple(left_out))
    different = study.replaced(site, asked, force=force)
    opened = spec.open()
    images = opened.images(data, left_out=left_out)
    _rehearse(opened.hooked.site(site), len(images), asked)
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
    # Last of all: a folder that is a study has all of its parts.
    study.save()
    class_features = profile(dictionary, acts)
    meta = dictionary.meta
    summary: dict[str, Any] = {
        "study": str(out),
        "model": spec.model,
        "site": site,
        "images": acts.n_images,
        "left_out": left_out,
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
    show_table("discovered", ("what", "value"), [*{**summary, "left_out": len(left_out)}.items()])
    say(f"Next: salve features {quote(str(out))}")


def left_out_of(folder: Path, skip: bool, *, as_json: bool) -> list[str]:
    """Return what is to be passed over in an image folder, and say how much that is.

    Args:
        folder: with one subfolder a class.
        skip: whether anything is to be.
        as_json: whether results are for a program.

    Raises:
        ReadError: if it has no subfolders.
    """
    left_out = unusable(folder, progress=not as_json) if skip else []
    if left_out:
        what = f"{len(left_out)} unreadable images or subfolders without any"
        show_note(f"Left out of {folder}: {what} ({in_short(left_out)}).")
    return left_out


def _rehearse(site: Site, n_images: int, asked: Mapping[str, Any]) -> None:
    """Fit random rows for one step: what is wrong with the options shows before the recording.

    Raises:
        InputError: as `fit`.
    """
    # One row in ten is held out; maps and tokens have more rows than images, nobody knows how many.
    enough = 2 * max(asked["n_latents"] or 0, site.width) + 64
    n_rows = min(n_images, enough) if site.layout == "pooled" else enough
    settings = FitSettings(options={}, **asked)
    rule = settings.rule()
    if isinstance(rule, Solver):  # one step of it is all of its work
        n_training = int((~held_out(torch.arange(n_rows))).sum())
        settings.latents_of(rule, Moments(torch.zeros(site.width), 1.0, n_training))
        return
    rows = torch.randn(n_rows, site.width, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is said of these rows does not hold for others
        fit(rows, **asked, steps=1, learning_rate=1e-4, run=Run(progress=False))


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
    acts, _, class_features = study.parts()
    study.check_checkpoint(acts)
    labels = (
        [label_of(class_features, class_name)]
        if class_name is not None
        else [int(label) for label in (class_features.counts > 0).nonzero()[:, 0]]
    )
    images = torch.bincount(acts.image_labels().long(), minlength=len(class_features.counts))
    summaries = [_class_summary(class_features, label, top, int(images[label])) for label in labels]
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
