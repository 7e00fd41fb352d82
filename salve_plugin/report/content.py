"""All that the pages of an atlas show, by the key of the file that it lies in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from salve_plugin.control.evaluate import Evaluation, evaluate_head
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.sweep import Trial
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.report import recipes, tables
from salve_plugin.report.bench import KEPT, Bench, dominant_latents
from salve_plugin.report.evidence import shared
from salve_plugin.report.front import front
from salve_plugin.report.gallery import IMAGES_A_FILE, Images, Maps, maps, maximizations
from salve_plugin.report.scripts import array
from salve_plugin.store.producer import producer
from salve_plugin.validate.activity import Activity
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence
from salve_plugin.validate.pictures import Scale, coloured
from salve_plugin.validate.quality import Quality
from salve_plugin.validate.quality_report import TITLES, notes

STOPS = 12
"""Colours of the palette that the page has; between two of them it draws a straight line."""


@dataclass(frozen=True, eq=False)
class Content:
    """Everything that the pages are made of."""

    hooked: HookedModel
    dictionary: Dictionary
    acts: Activations
    features: Features
    active: Activity
    pictures: Images | None
    quality: Quality | None
    evidence: LatentEvidence | None
    trials: Sequence[Trial]

    def pages(
        self,
        title: str,
        study: str | None,
        *,
        mapped: int,
        maximized: int | Sequence[int],
        bench_images: int,
        stepped: int,
    ) -> dict[str, Mapping[str, Any]]:
        """Return all data by key; see `atlas`."""
        bench: Bench | None = None
        missing = ""
        evaluation: Evaluation | None = None
        try:
            bench = Bench.of(self.hooked, self.dictionary, self.acts, bench_images)
            evaluation = evaluate_head(bench.decisions.weight, bench.decisions.bias, self.acts)
        # Without a bench there is still everything to look at; the page says why.
        except InputError as error:
            missing = str(error)
        counts = self.features.counts
        dominant = [
            self.features.dominant(label) if int(counts[label]) else None
            for label in range(len(counts))
        ]
        order = self._by_interest(dominant)
        shown = self._maps(order[:mapped])
        driven = order[:maximized] if isinstance(maximized, int) else maximized
        made = maximizations(self.hooked, self.dictionary, driven, self.active.signs)
        shift = tables.shifts(self.features)
        # What a page computes while a slider is dragged need not be computed ahead.
        ahead = [] if bench is None or bench.is_live else dominant_latents(dominant, stepped)
        crits = {} if bench is None else self._crits(bench, dominant)
        folded: list[int] = []
        pages = tables.class_files(self.features, shift, evaluation, crits)
        pages |= tables.latent_files(self.active, self.features, shift, shown, made, self.evidence)
        if bench is not None:
            pages |= tables.bench_files(bench, ahead)
            folded, folds = recipes.folds(self.hooked, self.dictionary, self.acts, order)
            pages |= folds | recipes.masks(self.hooked, self.acts)
        pages |= {} if self.pictures is None else self.pictures.pages()
        description = self.acts.description
        name = str(description.get("architecture") or description.get("model") or "model")
        index: dict[str, Any] = {
            "title": title or name,
            "about": self._about(study, shown),
            "classes": self._classes(dominant, evaluation),
            "latents": self._latents(),
            "quality": self._quality(),
            "front": front(self.dictionary, self.acts, self.quality, self.trials),
            "evidence": None if self.evidence is None else shared(self.evidence),
            "bench": None
            if bench is None
            else {
                **self._bench(bench, ahead),
                "folded": folded,
                "masks": "bench/mask" in pages,
            },
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
            "palette": _palette(),
            "maps_missing": shown.missing or "",
            "study": study,
            "producer": producer(),
        }

    def _classes(
        self, dominant: Sequence[int | None], evaluation: Evaluation | None
    ) -> Mapping[str, Any]:
        names = self.features.classes or [""] * len(dominant)
        accuracy = torch.full((len(dominant),), -1.0, dtype=torch.float32)
        content: dict[str, Any] = {}
        if evaluation is not None:
            accuracy = torch.where(evaluation.count > 0, evaluation.accuracy, -1.0)
            content = {"overall": evaluation.overall}
        counts = torch.bincount(self.acts.image_labels().long(), minlength=len(dominant))
        own_latents = torch.tensor([-1 if own is None else own for own in dominant])
        means = [0.0 if own is None else float(self.features.means[label, own])
                 for label, own in enumerate(dominant)]  # fmt: skip
        return content | {
            # Of a blank name nothing would be left to click on.
            "names": [name if name.strip() else str(label) for label, name in enumerate(names)],
            "named": self.features.classes is not None,
            "counts": array(counts, "i32"),
            "accuracy": array(accuracy, "f32"),
            "dominant": array(own_latents, "i32"),
            "means": array(torch.tensor(means, dtype=torch.float32), "f32"),
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
            "kept": min(KEPT, len(bench.weight)),
            "images_a_file": tables.images_a_file(bench),
            "folds_a_file": recipes.FOLDS_A_FILE,
        }

    def _by_interest(self, dominant: Sequence[int | None]) -> list[int]:
        """Return all latents, first those that classes depend on, then the most active."""
        first = dominant_latents(dominant, self.dictionary.n_latents)
        largest = self.active.top_codes.abs().amax(1).argsort(descending=True, stable=True)
        return list(dict.fromkeys([*first, *largest.tolist()]))

    def _maps(self, latents: Sequence[int]) -> Maps:
        if self.pictures is None:
            return Maps({}, missing="the atlas was made without images")
        return maps(self.hooked, self.dictionary, self.pictures, self.active.top_images, latents)

    def _crits(self, bench: Bench, dominant: Sequence[int | None]) -> tables.Crits:
        crits = {}
        for label, latent in enumerate(dominant):
            if latent is None or not bool((bench.labels == label).any()):
                continue
            rows = None if bench.decisions.is_binary else (label,)
            every = bench.alpha_crit(label, latent, None)
            own = every if rows is None else bench.alpha_crit(label, latent, rows)
            finite, after = own[own.isfinite()], None
            if rows is not None and len(finite):
                # At the root itself two logits are equal.
                strength = float(finite.max()) * (1 + 1e-6)
                after = strength, bench.flows(label, latent, strength)
            crits[label] = tables.Crit(own, every, after)
        return crits


def _palette() -> list[list[int]]:
    """Return some colours, dark to bright, of the palette that all pictures of maps have."""
    colours = coloured(
        torch.linspace(0, 1, STOPS, dtype=torch.float32)[None], Scale(1.0, signed=False)
    )
    return (colours[:, 0].T * 255).round().int().tolist()
