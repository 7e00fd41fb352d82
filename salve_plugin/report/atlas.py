"""A study as pages: what its dictionary holds, what classes depend on, and a bench for edits."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from salve_plugin.control.evaluate import Evaluation, evaluate_head
from salve_plugin.control.networks import Networks
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features, profile
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import check_of_model
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.report import tables
from salve_plugin.report.bench import Bench, dominant_latents
from salve_plugin.report.folder import page_files, save
from salve_plugin.report.gallery import IMAGES_A_FILE, Images, Maps, maps
from salve_plugin.report.scripts import array, script
from salve_plugin.store.producer import producer
from salve_plugin.validate.activity import Activity, activity
from salve_plugin.validate.quality import Quality
from salve_plugin.validate.quality_report import TITLES, notes


def atlas(
    hooked: HookedModel,
    dictionary: Dictionary,
    acts: Activations,
    folder: str | os.PathLike[str],
    *,
    images: Any = None,
    quality: Quality | None = None,
    title: str = "",
    study: str | None = None,
    top: int = 12,
    mapped: int = 64,
    bench_images: int = 2000,
    stepped: int = 16,
    force: bool = False,
) -> Path:
    """Write a folder of pages that opens from disk, without a server or a network.

    An overview, a page for every class and every latent, and a bench on which edits are tried on
    recorded activations. It shows names of classes and files, thumbnails of the latents' top images
    and, for the bench, the head's weights: share it as you would share those. The same arguments
    give the same bytes. What is computed from all of the recording: accuracy, profile, densities
    and galleries; from the images of the bench: critical strengths and what edits do.

    Args:
        hooked: the attached model, without edits.
        dictionary: of it.
        acts: recording of the dictionary's site. The bench needs the head's input.
        folder: made if missing; an earlier atlas of the same dictionary and recording is replaced.
        images: data set that was recorded, such as the loader's `.dataset`: its item i is the i-th
            (image, label). Only top images are read. None: galleries have no pictures.
        quality: from `salve.quality(dictionary, acts, hooked=hooked)`, shown beside its controls.
        title: heading; by default the model's name.
        study: folder for the `salve edit` lines that the bench writes; None: Python only.
        top: images in a latent's gallery.
        mapped: latents that get Grad-FAM maps, first those that classes depend on: each costs
            `top` forward and backward passes.
        bench_images: recorded images on the bench, of every class the same share.
        stepped: latents whose suppression on all rows is computed for every strength ahead, where
            the page cannot compute it live.
        force: replace what lies there, whatever it is.

    Returns:
        The path of `index.html`.

    Raises:
        BaseMismatchError: if model, dictionary and recording are not of one network.
        InputError: if they are not of one site, the images are not the recorded ones, a number is
            out of range, or something else lies in the folder.
        WriteError: if it cannot be written; what was there is whole.
    """
    check_attached(hooked)
    for name, number in (("top", top), ("bench_images", bench_images)):
        if number < 1:
            raise InputError(f"{name} is {number}; at least 1 was expected")
    Networks(hooked).check_present("the recording", acts.network_sha256)
    features = profile(dictionary, acts)
    check_of_model(acts.classes, len(features.counts))
    pictures = None if images is None else Images.of(hooked, acts, images)
    active = activity(dictionary, acts, top)
    content = _Content(hooked, dictionary, acts, features, active, pictures, quality)
    pages = content.pages(title, study, mapped, bench_images, stepped)
    written = {f"data/{key}.js": script(key, value) for key, value in pages.items()}
    written |= page_files()
    about = {
        "dictionary": dictionary.digest, "network": acts.network_sha256,
        "labels": acts.labels_sha256, "images": acts.n_images,
    }  # fmt: skip
    return save(Path(folder), written, about, force=force) / "index.html"


@dataclass(frozen=True, eq=False)
class _Content:
    """Everything that the pages are made of."""

    hooked: HookedModel
    dictionary: Dictionary
    acts: Activations
    features: Features
    active: Activity
    pictures: Images | None
    quality: Quality | None

    def pages(
        self, title: str, study: str | None, mapped: int, bench_images: int, stepped: int
    ) -> dict[str, Mapping[str, Any]]:
        """Return all data by key."""
        bench: Bench | None = None
        missing = ""
        evaluation: Evaluation | None = None
        try:
            bench = Bench.of(self.hooked, self.dictionary, self.acts, bench_images)
            evaluation = evaluate_head(bench.decisions.weight, bench.decisions.bias, self.acts)
        except InputError as error:
            missing = str(error)
        counts = self.features.counts
        dominant = [
            self.features.dominant(label) if int(counts[label]) else None
            for label in range(len(counts))
        ]
        shown = self._maps(dominant, mapped)
        shift = tables.shifts(self.features)
        ahead = [] if bench is None or bench.is_live else dominant_latents(dominant, stepped)
        crits = {} if bench is None else self._crits(bench, dominant)
        pages = tables.class_files(self.features, shift, evaluation, crits)
        pages |= tables.latent_files(self.active, self.features, shift, shown)
        pages |= {} if bench is None else tables.bench_files(bench, ahead)
        pages |= {} if self.pictures is None else self.pictures.pages()
        description = self.acts.description
        name = str(description.get("architecture") or description.get("model") or "model")
        index: dict[str, Any] = {
            "title": title or name,
            "about": self._about(study, shown),
            "classes": self._classes(dominant, evaluation),
            "latents": self._latents(),
            "quality": self._quality(),
            "bench": None if bench is None else self._bench(bench, ahead),
            "bench_missing": missing,
        }
        return pages | {"index": index}

    def _about(self, study: str | None, shown: Maps) -> Mapping[str, Any]:
        dictionary, acts = self.dictionary, self.acts
        images = () if self.pictures is None else self.pictures.shown
        files = None if self.pictures is None else self.pictures.files
        return {
            "dictionary": dictionary.digest,
            "network": acts.network_sha256,
            "site": acts.site.name,
            "width": acts.width,
            "learner": dictionary.learner,
            "n_latents": dictionary.n_latents,
            "n_images": acts.n_images,
            "n_rows": acts.n_rows,
            "classes_a_file": tables.CLASSES_A_FILE,
            "latents_a_file": tables.LATENTS_A_FILE,
            "images_a_file": IMAGES_A_FILE,
            "images": array(torch.tensor(images, dtype=torch.int32), "i32"),
            "files": None if files is None else [files[image] for image in images],
            "maps_missing": shown.missing or "",
            "study": study,
            "producer": producer(),
        }

    def _classes(
        self, dominant: list[int | None], evaluation: Evaluation | None
    ) -> Mapping[str, Any]:
        names = self.features.classes
        numbers = range(len(dominant))
        accuracy = torch.full((len(dominant),), -1.0)
        content: dict[str, Any] = {}
        if evaluation is not None:
            accuracy = torch.where(evaluation.count > 0, evaluation.accuracy, -1.0)
            content = {"overall": evaluation.overall}
        counts = torch.bincount(self.acts.image_labels().long(), minlength=len(dominant))
        own_latents = torch.tensor([-1 if own is None else own for own in dominant])
        means = [0.0 if own is None else float(self.features.means[label, own])
                 for label, own in enumerate(dominant)]  # fmt: skip
        return content | {
            "names": [str(label) if names is None else names[label] for label in numbers],
            "named": names is not None,
            "counts": array(counts, "i32"),
            "accuracy": array(accuracy, "f32"),
            "dominant": array(own_latents, "i32"),
            "means": array(torch.tensor(means), "f32"),
        }

    def _latents(self) -> Mapping[str, Any]:
        components, share = tables.principal_components(self.dictionary.atoms)
        active = self.active
        largest = torch.where(active.signs < 0, active.least, active.most)
        return {
            "density": array(active.density, "f32"),
            "largest": array(largest, "f32"),
            "x": array(components[:, 0], "f32"),
            "y": array(components[:, 1], "f32"),
            "share": share,
            "class": array(tables.strongest_classes(self.features), "i32"),
            "score": array(self.features.scores.amax(0), "f32"),
        }

    def _quality(self) -> Mapping[str, Any] | None:
        if self.quality is None:
            return None
        rows = {name: vars(row) for name, row in self.quality.rows.items()}
        return {
            "columns": list(rows),
            "rows": [
                {"name": title, "values": [rows[name][field] for name in rows]}
                for field, title in TITLES.items()
                if any(rows[name][field] is not None for name in rows)
            ],
            "notes": notes(self.quality),
        }

    def _bench(self, bench: Bench, ahead: list[int]) -> Mapping[str, Any]:
        return {
            "images": array(bench.images, "i32"),
            "labels": array(bench.labels, "i32"),
            "live": bench.is_live,
            "steps": ahead,
            "binary": bench.decisions.is_binary,
        }

    def _maps(self, dominant: list[int | None], mapped: int) -> Maps:
        """Return the maps of the latents that classes depend on, then of the most active."""
        if self.pictures is None:
            return Maps({}, "the atlas was made without images")
        first = dominant_latents(dominant, mapped)
        largest = self.active.top_codes.abs().amax(1)
        rest = [int(latent) for latent in largest.argsort(descending=True, stable=True)]
        latents = [*first, *(latent for latent in rest if latent not in set(first))][:mapped]
        shown = maps(self.hooked, self.dictionary, self.pictures, self.active.top_images, latents)
        for image in self.active.top_images.flatten().tolist():
            self.pictures.show(image)
        return shown

    def _crits(self, bench: Bench, dominant: list[int | None]) -> tables.Crits:
        crits = {}
        for label, latent in enumerate(dominant):
            if latent is None or not bool((bench.labels == label).any()):
                continue
            rows = None if bench.decisions.is_binary else (label,)
            every = bench.alpha_crit(label, latent, None)
            own = every if rows is None else bench.alpha_crit(label, latent, rows)
            crits[label] = (own, every)
        return crits
