"""What a gate does as it gets stronger: suppression, enhancement, and whether seeds agree.

Latents and strengths are chosen on the training part; numbers are of the test part. Strengths
are in units of √width, since atoms of unit norm have entries of about 1/√width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import salve_plugin as salve
from benchmarks.salve_paper.common import Numbers, Outcome, mean, principal_axes
from salve_plugin.control.change import Change, change
from salve_plugin.control.choosing.latent_edits import (
    edited_weight,
    random_control,
    without_class,
)  # fmt: skip
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import Evaluation, evaluate_head, evaluate_heads
from salve_plugin.demo.measures import Experiment
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.validate.stability import stability

GRID = tuple(2 ** (third / 3) for third in range(-9, 13))
"""Strengths tried, in units of √width: from where next to nothing changes to where nearly every
column is closed, a quarter apart."""

GOAL, ALLOWED = 0.05, 0.01
"""Suppression: the class's accuracy is to be at most, the others' mean loss at most."""


@dataclass(frozen=True)
class Curve:
    """A gate at growing strength on all rows.

    Attributes:
        edit: at strength 0.
        strengths: tried.
        changes: of the class and of the others, at each.
    """

    edit: Edit
    strengths: tuple[float, ...]
    changes: tuple[Change, ...]

    @property
    def best_suppression(self) -> int:
        """Index of the cheapest strength that reaches the goal, else of the strongest effect."""
        met = [at for at, one in enumerate(self.changes) if one.target_after <= GOAL]
        if met:
            return max(met, key=lambda at: self.changes[at].others_mean)
        return min(range(len(self.changes)), key=lambda at: self.changes[at].target_after)

    @property
    def largest_allowed(self) -> int | None:
        """Index of the largest strength up to which the others lose no more than allowed."""
        allowed = None
        for at, one in enumerate(self.changes):
            if one.others_mean < -ALLOWED:
                break
            allowed = at
        return allowed


def curve(
    experiment: Experiment, edit: Edit, label: int, acts: Activations, before: Evaluation
) -> Curve:
    """Evaluate the edit at every strength of the grid."""
    weight, bias = experiment.hooked.unembed()
    strengths = tuple(share * experiment.train.width**0.5 for share in GRID)
    heads = (edited_weight(weight, edit.with_strength(strength)) for strength in strengths)
    after = evaluate_heads(heads, bias, acts)
    return Curve(edit, strengths, tuple(change(before, one, label) for one in after))


def _gates(
    experiment: Experiment, pca: Experiment, label: int, mode: str, seed: int
) -> dict[str, Edit]:
    """Return the paper's gate on the dominant latent and its controls, on all rows."""
    make = salve.suppress if mode == "suppress" else salve.enhance
    dominant = experiment.features.dominant(label)
    edit = make(experiment.hooked, experiment.dictionary, latent=dominant, strength=0.0)
    draw = torch.Generator().manual_seed(1000 * seed + label)
    other = int(torch.randint(experiment.dictionary.n_latents - 1, (), generator=draw))
    other += other >= dominant
    return {
        "dominant": edit,
        "random_latent": make(
            experiment.hooked, experiment.dictionary, latent=other, strength=0.0, base=edit.base
        ),
        "random_direction": random_control(edit, 1000 * seed + label),
        "pca": make(
            experiment.hooked, pca.dictionary, latent=pca.features.dominant(label), strength=0.0,
            base=edit.base,
        ),
    }  # fmt: skip


def suppression(
    experiment: Experiment, labels: Sequence[int], *, seed: int, controls: bool = True
) -> Outcome:
    """Suppress each class's dominant latent at the strength that the training part asks for.

    Controls are the same gate on another latent, a random direction and the class's dominant
    principal component, and what needs no dictionary: the class's row set to zero, and the mask.
    """
    hooked, train, test = experiment.hooked, experiment.train, experiment.test
    weight, bias = hooked.unembed()
    start = {part: evaluate_head(weight, bias, part) for part in (train, test)}
    pca = principal_axes(experiment) if controls else experiment
    details: list[dict[str, Any]] = []
    for label in labels:
        gates = _gates(experiment, pca, label, "suppress", seed)
        effects: dict[str, Change] = {}
        for name, edit in gates.items() if controls else [("dominant", gates["dominant"])]:
            chosen = curve(experiment, edit, label, train, start[train]).best_suppression
            on_test = curve(experiment, edit, label, test, start[test])
            effects[name] = on_test.changes[chosen]
            if name == "dominant":
                dominant, strength = on_test, on_test.strengths[chosen]
        if controls:
            rowless = evaluate_head(without_class(weight, label), bias, test)
            effects["zero_row"] = change(start[test], rowless, label)
            with salve.mask(hooked, label, train).applied(hooked):
                effects["mask"] = change(start[test], evaluate_head(*hooked.unembed(), test), label)
        details.append(
            {
                "label": label,
                "latent": gates["dominant"].latent,
                "strength": strength,
                "effects": {name: one.to_json() for name, one in effects.items()},
                "target": [one.target_after for one in dominant.changes],
                "others": [one.others_mean for one in dominant.changes],
            }
        )
    numbers: Numbers = {"classes": float(len(labels))}
    for name in details[0]["effects"]:
        effects_of = [entry["effects"][name] for entry in details]
        numbers[f"met_{name}"] = mean(float(met_goal(one)) for one in effects_of)
        numbers[f"target_{name}"] = mean(one["target_after"] for one in effects_of)
        numbers[f"others_{name}"] = mean(one["others_mean"] for one in effects_of)
    return Outcome(numbers, details)


def met_goal(effect: dict[str, Any]) -> bool:
    """Say whether a change, as JSON values, is within the goal of suppression."""
    return bool(effect["target_after"] <= GOAL and effect["others_mean"] >= -ALLOWED)


def enhancement(experiment: Experiment, labels: Sequence[int], *, seed: int) -> Outcome:
    """Enhance each class's dominant latent as far as the others allow it on the training part.

    Gain is the share of the probability that the class's own images lack which the edit gives
    them. Beside the same controls: the class's bias raised as far as the others allow.
    """
    hooked, train, test = experiment.hooked, experiment.train, experiment.test
    weight, bias = hooked.unembed()
    start = {part: evaluate_head(weight, bias, part) for part in (train, test)}
    pca = principal_axes(experiment)
    x, of = test.tensor().float(), test.labels()
    spread = float((train.tensor().float() @ weight.T + bias).std())
    details: list[dict[str, Any]] = []
    for label in labels:
        own = x[of == label]

        def gain(head: Tensor, offset: Tensor, own: Tensor = own, label: int = label) -> float:
            before = float((own @ weight.T + bias).softmax(1)[:, label].mean())
            after = float((own @ head.T + offset).softmax(1)[:, label].mean())
            return (after - before) / (1 - before) if before < 1 else 0.0

        entry: dict[str, Any] = {"label": label, "gain": {}, "others": {}}
        for name, edit in _gates(experiment, pca, label, "enhance", seed).items():
            allowed = curve(experiment, edit, label, train, start[train])
            at = allowed.largest_allowed
            strength = 0.0 if at is None else allowed.strengths[at]
            head = edited_weight(weight, edit.with_strength(strength))
            entry["gain"][name] = gain(head, bias)
            after = evaluate_head(head, bias, test)
            entry["others"][name] = change(start[test], after, label).others_mean
            if name == "dominant":
                entry |= {"latent": edit.latent, "strength": strength}
        raised = _raised(weight, bias, label, train, start[train], spread)
        entry["gain"]["bias"] = gain(weight, raised)
        after = evaluate_head(weight, raised, test)
        entry["others"]["bias"] = change(start[test], after, label).others_mean
        details.append(entry)
    numbers: Numbers = {"classes": float(len(labels))}
    numbers["rising"] = mean(float(entry["gain"]["dominant"] > 0) for entry in details)
    for name in details[0]["gain"]:
        numbers[f"gain_{name}"] = mean(entry["gain"][name] for entry in details)
        numbers[f"others_{name}"] = mean(entry["others"][name] for entry in details)
    return Outcome(numbers, details)


def _raised(
    weight: Tensor, bias: Tensor, label: int, acts: Activations, before: Evaluation, spread: float
) -> Tensor:
    """Return the biases with the class's raised as far as the others allow."""
    best = bias
    for share in GRID:
        trial = bias.clone()
        # In units of the logits' spread, so that one grid serves any network.
        trial[label] += share * spread
        after = change(before, evaluate_head(weight, trial, acts), label)
        if after.others_mean < -ALLOWED:
            break
        best = trial
    return best


def initialisations(
    experiment: Experiment, labels: Sequence[int], dictionaries: Sequence[Dictionary],
    first: Outcome, *, seeds: Sequence[int],
) -> Outcome:  # fmt: skip
    """Whether other seeds find the same dominant latents, and whether suppressing does the same.

    Args:
        experiment: with the first seed's dictionary.
        labels: classes.
        dictionaries: of the other seeds.
        first: the first seed's suppression.
        seeds: of the other dictionaries.
    """
    if not dictionaries:
        return Outcome({"seeds": 1.0}, None)
    atoms = experiment.dictionary.atoms
    alike = stability(atoms, [other.atoms for other in dictionaries], signed=False)
    reference = atoms[[experiment.features.dominant(label) for label in labels]]
    same, different, outcomes = [], [], [first]
    apart = ~torch.eye(len(labels), dtype=torch.bool)
    for dictionary, seed in zip(dictionaries, seeds, strict=True):
        trial = experiment.with_dictionary(dictionary)
        dominant = dictionary.atoms[[trial.features.dominant(label) for label in labels]]
        cosines = (reference @ dominant.T).abs()
        same.append(float(cosines.diagonal().mean()))
        different.append(float(cosines[apart].mean()))
        outcomes.append(suppression(trial, labels, seed=seed, controls=False))
    met = torch.tensor(
        [[met_goal(entry["effects"]["dominant"]) for entry in one.details] for one in outcomes]
    ).double()
    others = torch.tensor(
        [[entry["effects"]["dominant"]["others_mean"] for entry in one.details] for one in outcomes]
    )
    share = met.mean(0)
    numbers: Numbers = {
        "seeds": float(len(outcomes)),
        "cosine": alike.cosine,
        "null_cosine": alike.null_cosine,
        "dominant": mean(same),
        "other_classes": mean(different),
        "agreement": float(torch.maximum(share, 1 - share).mean()),
        "met": float(met.mean()),
        "met_least": float(met.mean(1).min()),
        "met_most": float(met.mean(1).max()),
        "others_worst": float(others.min()),
    }
    return Outcome(numbers, {"met": met.tolist(), "others_mean": others.tolist(), "cosines": same})
