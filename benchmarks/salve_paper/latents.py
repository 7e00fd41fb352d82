"""Whose latents they are: dominant ones, those that two classes share, and superclasses'."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from benchmarks.salve_paper.common import (
    Numbers,
    Outcome,
    mean,
    principal_axes,
    random_dictionary,
)  # fmt: skip
from salve_plugin.control.concepts.evidence import auc
from salve_plugin.demo.measures import CrossClass, Experiment, cross_class
from salve_plugin.discover.features import Features
from salve_plugin.validate.baselines import control

SHARED = 5
"""Latents that are tried as shared by two classes; in sharing, latents that count for a class."""

PERMUTATIONS, DRAWS = 2000, 20
"""Of classes among superclasses; of random bases."""


def dominant_latents(experiment: Experiment, labels: Sequence[int], *, seed: int) -> Outcome:
    """How well the latent of largest |mean| tells its class, on test images."""
    random = experiment.with_dictionary(random_dictionary(experiment, seed))
    choosers: dict[str, tuple[Experiment, Callable[[Features, int], int]]] = {
        "dominant": (experiment, Features.dominant),
        "score": (experiment, _first),
        "random": (random, Features.dominant),
        "random_score": (random, _first),
        "pca": (principal_axes(experiment), Features.dominant),
    }
    numbers: Numbers = {}
    details = {}
    for name, (trial, choose) in choosers.items():
        latents = [choose(trial.features, label) for label in labels]
        areas = [
            _class_auc(trial, label, latent) for label, latent in zip(labels, latents, strict=True)
        ]
        numbers[f"auc_{name}"] = sum(areas) / len(areas)
        numbers[f"own_{name}"] = len(set(latents)) / len(labels)
        details[name] = {"latents": latents, "auc": areas}
    return Outcome(numbers, details)


def _first(features: Features, label: int) -> int:
    return features.ranked(label, 1)[0]


def _class_auc(experiment: Experiment, label: int, latent: int) -> float:
    """Return the area under the class's ROC curve; the code's sign is that on the training part."""
    means, counts = experiment.features.means[:, latent], experiment.features.counts
    others = counts > 0
    others[label] = False
    sign = 1.0 if means[label] >= means[others].mean() else -1.0
    codes = torch.cat(
        [
            experiment.dictionary.encode(batch.x)[:, latent]
            for batch in experiment.test.batches(4096)
        ]
    )
    return auc(sign * codes.double(), experiment.test.labels() == label)


def crossing(experiment: Experiment, *, seed: int) -> Outcome:
    """Suppress the latents that two classes share most, each until half of one class is lost.

    A latent is selective if both classes lose ten points or more and the others on average less
    than half of what the second loses. The control are random directions under the same rules.
    """
    random = experiment.with_dictionary(random_dictionary(experiment, seed))
    tries = range(min(SHARED, experiment.dictionary.n_latents))
    found = {
        name: [_losses(cross_class(trial, rank=rank)) for rank in tries]
        for name, trial in (("learned", experiment), ("random", random))
    }
    numbers: Numbers = {"latents": float(len(tries))}
    for name, entries in found.items():
        numbers[f"selective_{name}"] = mean(float(entry["selective"]) for entry in entries)
        for loss in ("first", "second", "others"):
            numbers[f"{loss}_{name}"] = mean(entry[loss] for entry in entries)
    return Outcome(numbers, found)


def _losses(result: CrossClass) -> dict[str, Any]:
    lost = torch.tensor(result.before).double() - torch.tensor(result.after).double()
    first, second = (float(lost[label]) for label in result.classes)
    rest = lost.clone()
    rest[list(result.classes)] = torch.nan  # as classes without images are
    others = 0.0 if bool(rest.isnan().all()) else float(rest.nanmean())
    return {
        "latent": result.latent,
        "classes": list(result.classes),
        "strength": result.strength,
        "first": first,
        "second": second,
        "others": others,
        "selective": min(first, second) >= 0.1 and others < second / 2,
    }


def sharing(
    experiment: Experiment, labels: Sequence[int], superclass: Sequence[int] | None, *, seed: int
) -> Outcome:
    """Whether classes of one superclass have more latents in common than others.

    A class's latents are the few whose class mean lies furthest from the overall mean, in units of
    the latent's spread within classes, with the side on which it lies. In common: Jaccard index.
    Excess is its mean over pairs within superclasses minus that over pairs across them, compared
    with permuted classes, with random directions and with the features themselves. Without
    superclasses, or with no two classes in one of several, there are no numbers.
    """
    placed = [label for label in labels if superclass and superclass[label] >= 0]
    groups = torch.tensor([superclass[label] for label in placed] if superclass else [])
    if not 1 < len(set(groups.tolist())) < len(placed):
        return Outcome({}, None)
    overlap = _overlaps(experiment.features, placed)
    excess = _excess(overlap, groups)
    draw = torch.Generator().manual_seed(seed)
    null = torch.tensor(
        [
            _excess(overlap, groups[torch.randperm(len(groups), generator=draw)])
            for _ in range(PERMUTATIONS)
        ]
    )
    random = torch.tensor(
        [
            _excess(
                _overlaps(
                    experiment.with_dictionary(random_dictionary(experiment, at)).features, placed
                ),
                groups,
            )
            for at in range(seed, seed + DRAWS)
        ]
    )
    neurons = experiment.with_dictionary(
        control("neurons", experiment.train, experiment.dictionary, k=1)
    )
    numbers: Numbers = {
        "classes": float(len(placed)),
        "superclasses": float(len(set(groups.tolist()))),
        "excess": excess,
        # Counting the true assignment, so that p is never 0.
        "p": float((1 + int((null >= excess).sum())) / (1 + PERMUTATIONS)),
        "random_mean": float(random.mean()),
        "random_high": float(random.quantile(0.95)),
        "neurons": _excess(_overlaps(neurons.features, placed), groups),
    }
    return Outcome(numbers, {"overlap": overlap.tolist(), "random": random.tolist()})


def _overlaps(features: Features, labels: Sequence[int]) -> Tensor:
    """Return the Jaccard index of every pair of classes' latents (classes, classes)."""
    means = features.means[features.counts > 0]
    spreads = features.spreads.clamp(min=1e-3 * float(features.spreads.max()))
    sets = []
    for label in labels:
        distance = (features.means[label] - means.mean(0)) / spreads
        top = distance.abs().topk(min(SHARED, len(distance))).indices.tolist()
        sets.append({(latent, bool(distance[latent] > 0)) for latent in top})
    return torch.tensor([[len(a & b) / len(a | b) for b in sets] for a in sets])


def _excess(overlap: Tensor, groups: Tensor) -> float:
    rows, columns = torch.tensor(list(combinations(range(len(groups)), 2))).T
    within = groups[rows] == groups[columns]
    pairs = overlap[rows, columns]
    return float(pairs[within].mean() - pairs[~within].mean())
