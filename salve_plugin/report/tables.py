"""What the pages show of classes and latents, in pieces that are loaded when they are looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.evaluate import Evaluation
from salve_plugin.discover.features import Features
from salve_plugin.discover.selection_score import in_spreads
from salve_plugin.report.bench import Bench, shared_fields
from salve_plugin.report.evidence import part
from salve_plugin.report.gallery import Maps
from salve_plugin.report.scripts import array, quantized
from salve_plugin.validate.activity import Activity
from salve_plugin.validate.crops import Box, pointed_at
from salve_plugin.validate.evidence.class_profile import NO_CLASS
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence

CLASSES_A_FILE = 64
LATENTS_A_FILE = 64
NUMBERS_A_FILE = 2**18
"""Recorded head inputs in one file: so many are decoded in a few milliseconds."""
RANKED = 12
"""Latents that a class's page lists."""
PROFILE = 48
"""Classes that a latent's page lists: those that it sets apart most."""
FLOWS = 24
"""Classes that a class's page lists as predictions for its images."""


@dataclass(frozen=True, eq=False)
class Crit:
    """Where the decisions for a class break under its dominant latent, and where its images go.

    Attributes:
        own: critical strengths on the class's own row, (images,).
        every: on all rows, (images,).
        after: of an edit of the own row the strength, just beyond all that are finite there, and
            the number of images by class (classes,); None if none is.
    """

    own: Float64[Tensor, " images"]
    every: Float64[Tensor, " images"]
    after: tuple[float, Int64[Tensor, " classes"]] | None


Crits = Mapping[int, Crit]
"""By class: critical strengths of its images for the dominant latent, on its own row and on all."""


def shifts(features: Features) -> Float64[Tensor, "classes latents"]:
    """Return how far each class's mean code is from the mean of the others' means, in spreads."""
    seen = features.counts > 0
    n_others = int(seen.sum()) - 1
    if n_others < 1 or not bool(features.spreads.any()):
        return torch.zeros_like(features.means)
    # The others' mean by way of the total: one sum for all classes instead of one for each.
    total = features.means[seen].sum(0)
    shift = in_spreads(features.means - (total - features.means) / n_others, features.spreads)
    return torch.where(seen[:, None], shift, 0.0)


def principal_components(atoms: Tensor) -> tuple[Float64[Tensor, "latents two"], float]:
    """Return the atoms' first two principal components and their share of the variance.

    Signs are fixed: the largest entry of each axis is positive.
    """
    centred = atoms.detach().cpu().double()
    centred = centred - centred.mean(0)
    # Of the width's square and not by SVD of the atoms, of which there are many times as many.
    variances, axes = torch.linalg.eigh(centred.T @ centred)
    # eigh sorts ascending: the last two are the main axes.
    axes = axes[:, -2:].flip(1)
    if axes.shape[1] < 2:
        axes = torch.cat([axes, torch.zeros_like(axes)], 1)
    largest = axes.gather(0, axes.abs().argmax(0)[None])
    total = float(variances.clamp(min=0).sum())
    share = float(variances[-2:].clamp(min=0).sum()) / total if total else 0.0
    return centred @ (axes * torch.where(largest < 0, -1.0, 1.0)), share


def class_files(
    features: Features, shift: Tensor, evaluation: Evaluation | None, crits: Crits
) -> dict[str, Mapping[str, Any]]:
    """Return what the pages of classes show, by key."""
    shown = partial(_class, features, shift, evaluation, crits)
    return _chunked("classes", shown, len(features.counts), CLASSES_A_FILE)


def _class(
    features: Features, shift: Tensor, evaluation: Evaluation | None, crits: Crits, label: int
) -> Mapping[str, Any] | None:
    if not int(features.counts[label]):
        return None
    ranked = features.ranked(label, RANKED)
    content: dict[str, Any] = {
        "ranked": ranked,
        "scores": array(features.scores[label, ranked], "f32"),
        "means": array(features.means[label, ranked], "f32"),
        "shifts": array(shift[label, ranked], "f32"),
    }
    if evaluation is not None:
        content["predicted"] = _most(evaluation.confusion[label])
    if label in crits:
        crit = crits[label]
        content["crit"] = {
            "own": array(crit.own.sort().values, "f64"),
            "all": array(crit.every.sort().values, "f64"),
        }
        if crit.after is not None:
            strength, flows = crit.after
            content["after"] = {"strength": strength, **_most(flows)}
    return content


def _most(row: Int64[Tensor, " classes"]) -> Mapping[str, Any]:
    """Return the classes that most images go to, with how many do."""
    order = row.argsort(descending=True, stable=True)[:FLOWS]
    flows = order[row[order] > 0]
    return {"classes": array(flows, "i32"), "images": array(row[flows], "i32")}


def latent_files(
    active: Activity,
    features: Features,
    shift: Tensor,
    maps: Maps,
    made: Mapping[int, Mapping[str, Any]],
    evidence: LatentEvidence | None,
) -> dict[str, Mapping[str, Any]]:
    """Return what the pages of latents show, by key.

    Args:
        active: where and how strongly latents are active.
        features: their profile.
        shift: from `shifts`.
        maps: of some of them.
        made: images that were made to drive some, see `maximizations`.
        evidence: of all of them.
    """
    shown = partial(_latent, active, features, shift, maps, made)
    files = _chunked("latents", shown, len(active.most), LATENTS_A_FILE)
    if evidence is None:
        return files
    return {
        key: {**content, "evidence": part(evidence, slice(start, start + LATENTS_A_FILE))}
        for (key, content), start in zip(
            files.items(), range(0, len(active.most), LATENTS_A_FILE), strict=True
        )
    }


def _latent(
    active: Activity,
    features: Features,
    shift: Tensor,
    maps: Maps,
    made: Mapping[int, Mapping[str, Any]],
    latent: int,
) -> Mapping[str, Any]:
    profile = shift[:, latent]
    apart = profile.abs().argsort(descending=True, stable=True)[:PROFILE]
    apart = apart[features.counts[apart] > 0]
    content: dict[str, Any] = {
        "images": array(active.top_images[latent], "i32"),
        "codes": array(active.top_codes[latent], "f32"),
        "counts": array(active.counts[latent], "i32"),
        "least": float(active.least[latent]),
        "most": float(active.most[latent]),
        "spread": float(features.spreads[latent]),
        "profile": {
            "classes": array(apart, "i32"),
            "means": array(features.means[apart, latent], "f32"),
            "shifts": array(profile[apart], "f32"),
        },
    }
    if latent in made:
        content["made"] = made[latent]
    grids = maps.grids.get(latent)
    if grids is not None:
        # Of a latent that is strongest where it is negative, what lowers it is what drives it.
        heats = grids * float(active.signs[latent])
        values, unit = quantized(heats)
        crops = torch.tensor([_crop(heat, maps.size) for heat in heats], dtype=torch.float32)
        content["maps"] = {
            "height": grids.shape[-2], "width": grids.shape[-1], "unit": unit,
            "values": array(values, "i8"),
            "crops": array(crops, "f32"),
        }  # fmt: skip
    return content


def _crop(heat: Tensor, size: tuple[int, int]) -> tuple[float, ...]:
    """Return a crop: left, top, width and height in shares of the image, width over height.

    It is the whole image where the map points at nothing.
    """
    height, width = size
    box = pointed_at(heat, size) or Box(0, 0, height, width)
    down, across = box.bottom - box.top, box.right - box.left
    shares = (box.left / width, box.top / height, across / width, down / height)
    return (*shares, across / down)


def _chunked(
    kind: str, shown: Callable[[int], object], count: int, size: int
) -> dict[str, Mapping[str, Any]]:
    """Return what is shown of each of so many, neighbours together under one key."""
    return {
        f"{kind}/{start // size}": {
            kind: [shown(index) for index in range(start, min(start + size, count))]
        }
        for start in range(0, count, size)
    }


def images_a_file(bench: Bench) -> int:
    """Return of how many images the head's inputs lie in one file."""
    return max(1, NUMBERS_A_FILE // bench.x.shape[1])


def bench_files(bench: Bench, stepped: Sequence[int]) -> dict[str, Mapping[str, Any]]:
    """Return what the edit bench computes with, by key."""
    classes, logits = bench.top()
    chunks: dict[str, Mapping[str, Any]] = {
        "bench/head": {"weight": array(bench.weight, "f32"), "bias": array(bench.bias, "f32")},
        "bench/top": {"classes": array(classes, "i32"), "logits": array(logits, "f32")},
        "bench/recipe": dict(shared_fields(bench.edit)),
    }
    # In several scripts: between two of them a page can answer.
    for number, x in enumerate(torch.split(bench.x, images_a_file(bench))):
        chunks[f"bench/features/{number}"] = {"x": array(x, "f32")}
    for start in range(0, len(bench.atoms), LATENTS_A_FILE):
        atoms = bench.atoms[start : start + LATENTS_A_FILE]
        chunks[f"atoms/{start // LATENTS_A_FILE}"] = {"atoms": array(atoms, "f32")}
    for latent in stepped:
        steps = bench.steps(latent)
        chunks[f"steps/{latent}"] = {
            "images": array(steps.images, "i32"),
            "strengths": array(steps.strengths, "f64"),
            "classes": array(steps.classes, "i32"),
            "limit": steps.limit,
        }
    return chunks


def strongest_classes(features: Features) -> Int64[Tensor, " latents"]:
    """Return for each latent the class that it is most specific to.

    NO_CLASS where all its scores are 0, as those of a dead latent are: nothing sets it apart.
    """
    return torch.where(features.scores.any(0), features.scores.argmax(0), NO_CLASS)
