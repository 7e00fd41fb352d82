"""Three critical strengths: the paper's closed form, the exact root, and the edited network."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor

import salve_plugin as salve
from benchmarks.salve_paper.common import Numbers, Outcome, mean
from salve_plugin.demo.crit_check import check_crit
from salve_plugin.demo.measures import Experiment


def critical(experiment: Experiment, labels: Sequence[int], images: Sequence[Tensor]) -> Outcome:
    """The paper's closed form, the exact root, and what the edited network does at each."""
    weight, bias = experiment.hooked.unembed()
    x, of = experiment.test.tensor().float(), experiment.test.labels()
    logits = x @ weight.T + bias
    details: list[dict[str, Any]] = []
    ratios: list[Tensor] = []
    alike: list[float] = []
    for label in labels:
        latent = experiment.features.dominant(label)
        edit = salve.suppress(experiment.hooked, experiment.dictionary, latent=latent, strength=0.0)
        checked = check_crit(experiment, edit, label, images)
        zero = salve.alpha_crit(experiment.hooked, edit, experiment.test, classes=[label])
        flip = salve.alpha_crit(
            experiment.hooked, edit, experiment.test, target="flip", classes=[label]
        )
        usable = (zero.values > 0) & zero.values.isfinite()
        # Where the closed form says "never", it is wrong by any factor.
        ratios.append((zero.linear / zero.values)[usable])
        if int(usable.sum()) > 2:
            alike.append(_rank_correlation(zero.linear[usable], zero.values[usable]))
        others = logits[of == label].clone()
        others[:, label] = -torch.inf
        margin = logits[of == label, label] - others.amax(1)
        details.append(
            {
                **vars(checked),
                "latent": latent,
                "median_zero": _json_number(zero.linear.median()),
                "median_flip": _json_number(flip.values.median()),
                "median_margin": float(margin.median()),
            }
        )
    ratio = torch.cat(ratios)
    flips = torch.tensor([_number(entry["median_flip"]) for entry in details])
    zeros = torch.tensor([_number(entry["median_zero"]) for entry in details])
    margins = torch.tensor([entry["median_margin"] for entry in details])
    numbers: Numbers = {
        "images": float(sum(entry["images"] for entry in details)),
        "finite": float(sum(entry["finite"] for entry in details)),
        "agree": float(sum(entry["agree"] for entry in details)),
        "near": mean(abs(value - 1) <= 0.1 for value in ratio.tolist()),
        "never": mean(value == float("inf") for value in ratio.tolist()),
        "ratio": _median(value for value in ratio.tolist() if value < float("inf")),
        "left": _median(
            entry["really_left_at_linear"]
            for entry in details
            if entry["really_left_at_linear"] is not None
        ),
        "residual": max(entry["worst_residual"] for entry in details),
        "order": mean(alike),
        "classes": float(len(labels)),
        "predicts_zero": _rank_correlation(zeros, flips),
        "predicts_margin": _rank_correlation(margins, flips),
    }
    return Outcome(numbers, details)


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's correlation; infinite values rank last. 0 if one side is constant."""
    ranks = torch.stack(
        [torch.from_numpy(rankdata(side.double().numpy())) for side in (one, other)]
    )
    if bool((ranks.std(1) == 0).any()):
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def _median(values: Iterable[float]) -> float:
    listed = [float(value) for value in values]
    return float(torch.tensor(listed).median()) if listed else 0.0


def _json_number(value: Tensor) -> float | None:
    """Return the number, or None if it is infinite, which JSON has no word for."""
    return float(value) if bool(value.isfinite()) else None


def _number(value: float | None) -> float:
    return float("inf") if value is None else value
