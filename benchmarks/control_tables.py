"""What `control.py` measured on each network, and the tables made of it."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import planted
from benchmarks.pair_outcomes import COLUMNS, Outcome


@dataclass(frozen=True)
class Job:
    """One network.

    Attributes:
        network: which kind.
        seed: of its training, and of the pictures.
        cache: where it is kept.
        hidden_only: nothing but `choose` for pairs and edits of hidden layers.
        copies: recorded pairs of each digit.
    """

    network: planted.NetworkName
    seed: int
    cache: Path
    hidden_only: bool
    copies: int


@dataclass(frozen=True)
class Removed:
    """Tallies of every method for one network and attribute; the first is the head as it was."""

    attribute: str
    tallies: dict[str, Tensor]
    classes: Tensor
    choices: dict[str, str]


@dataclass(frozen=True)
class Suppressed:
    """What suppressing one class by one means does on test pictures."""

    method: str
    target: float
    worst_loss: float
    agreement: float


@dataclass(frozen=True)
class Result:
    """All that is measured on one network."""

    job: Job
    removed: list[Removed]
    suppressed: list[Suppressed]


def report_removal(results: list[Result], resamples: int = 200) -> None:
    """Print both tables of the attributes: what the networks do, and what each method does."""
    generator = torch.Generator().manual_seed(0)
    digits = planted.DIGITS["test"]
    draws = torch.randint(digits, (resamples, digits), generator=generator)
    samples = torch.zeros(resamples, digits, dtype=torch.float64)
    samples.scatter_add_(1, draws, torch.ones(resamples, digits, dtype=torch.float64))
    print("\n### The networks: pairs flipped / worst group of the pair / accuracy, in percent\n")
    print("| network | seed | " + " | ".join(planted.ATTRIBUTES) + " |")
    print("|---|---|" + "---|" * len(planted.ATTRIBUTES))
    effects: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = defaultdict(dict)
    for result in results:
        cells = []
        for one in result.removed:
            pair = planted.ATTRIBUTES[one.attribute]
            base = Outcome.of(one.tallies["base"], one.classes, pair)
            cells.append(
                f"{100 * float(base.flips):.0f} / {100 * float(base.worst):.0f} / "
                f"{100 * float(base.accuracy):.0f}"
            )
            resampled = Outcome.of(one.tallies["base"], one.classes, pair, samples)
            for name, tally in one.tallies.items():
                both = (
                    Outcome.of(tally, one.classes, pair).effect(base)[0],
                    Outcome.of(tally, one.classes, pair, samples).effect(resampled),
                )
                effects[name].setdefault(result.job.network, []).append(both)
        print(f"| {result.job.network} | {result.job.seed} | {' | '.join(cells)} |")
    networks = list(dict.fromkeys(result.job.network for result in results))
    print("\n### What each method does: mean of seeds and attributes, [95 % interval]\n")
    print("| method | " + " | ".join(f"{n}: {c}" for n in networks for c in COLUMNS) + " |")
    print("|---|" + "---:|" * (len(COLUMNS) * len(networks)))
    for name, by_network in effects.items():
        cells = []
        for network in networks:
            if network not in by_network:  # a method that the network has no layers for
                cells += ["" for _ in COLUMNS]
                continue
            mean = torch.stack([point for point, _ in by_network[network]]).mean(0)
            bounds = interval([spread for _, spread in by_network[network]])
            for column in range(len(COLUMNS)):
                low, high = (float(bound[column]) for bound in bounds)
                text = f"{float(mean[column]):.1f}"
                cells.append(text if column in (1, 3, 5) else f"{text} [{low:.0f}, {high:.0f}]")
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nChosen:")
    for result in results:
        for one in result.removed:
            for name, choice in one.choices.items():
                print(f"- {result.job.network} {result.job.seed} {one.attribute}, {name}: {choice}")


def interval(spreads: list[Tensor]) -> Tensor:
    """Return the 95 % interval (2, columns) of the mean, over digits and networks.

    Each resample draws digits, the same ones for every network and attribute, and networks.
    """
    stacked = torch.stack(spreads, 1)  # (samples, seeds x attributes, columns)
    per_seed = len(planted.ATTRIBUTES)
    seeds = stacked.shape[1] // per_seed
    by_seed = stacked.reshape(len(stacked), seeds, per_seed, -1).mean(2)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(seeds, (len(stacked), seeds), generator=generator)
    means = torch.stack([sample[rows].mean(0) for sample, rows in zip(by_seed, drawn, strict=True)])
    return torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)


def report_suppression(results: list[Result]) -> None:
    """Print what suppressing each class does, by network."""
    print("\n### Suppressing one class at a time\n")
    print(
        "| network | method | classes met | target accuracy, worst | worst loss of another class | "
        "agreement with the runner-up, mean | worst |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for network in dict.fromkeys(result.job.network for result in results):
        by_method = defaultdict(list)
        for result in results:
            if result.job.network == network:
                for one in result.suppressed:
                    by_method[one.method].append(one)
        for method, ones in by_method.items():
            met = sum(one.target <= 0.01 and one.worst_loss <= 0.005 for one in ones)
            agreement = [one.agreement for one in ones]
            print(
                f"| {network} | {method} | {met} of {len(ones)} | "
                f"{100 * max(one.target for one in ones):.1f} % | "
                f"{100 * max(one.worst_loss for one in ones):.1f} | "
                f"{np.mean(agreement):.3f} | {min(agreement):.3f} |"
            )
