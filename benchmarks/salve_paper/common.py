"""What the experiments share: their outcome, and the controls of a dictionary."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from salve_plugin.demo.measures import Experiment
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.validate.baselines import control
from salve_plugin.validate.stability import random_atoms

Numbers = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What one experiment found.

    Attributes:
        numbers: what its claim is judged by.
        details: what they are made of, plain JSON values.
    """

    numbers: Numbers
    details: Any


def random_dictionary(experiment: Experiment, seed: int) -> Dictionary:
    """Return as many random directions as the dictionary has latents, codes centred."""
    learned = experiment.dictionary
    atoms = random_atoms(learned.n_latents, learned.width, seed=seed)
    mean = experiment.train.tensor().float().mean(0)
    tensors = {
        "encoder_weight": atoms,
        "encoder_bias": -atoms @ mean,
        "atoms": atoms,
        "decoder_bias": mean,
    }
    return Dictionary(tensors, create("l1", {}), learned.site, {"network_sha256": learned.network})


def principal_axes(experiment: Experiment) -> Experiment:
    """Return the experiment with principal components in the latents' place."""
    n_latents = experiment.dictionary.n_latents
    return experiment.with_dictionary(
        control("pca", experiment.train, experiment.dictionary, k=min(n_latents, 8))
    )


def mean(values: Iterable[float]) -> float:
    """Return the mean, 0 of nothing."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else 0.0
