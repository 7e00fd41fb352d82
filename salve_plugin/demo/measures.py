"""What the demo measures on one network: every number of its tables is computed here."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salve_plugin.control.change import Change, change
from salve_plugin.control.choosing.candidate import Choice
from salve_plugin.control.choosing.choose import choose
from salve_plugin.control.choosing.goals import SuppressClass
from salve_plugin.control.choosing.latent_edits import (
    edited_weight,
    random_control,
    strength_to_break,
    without_class,
)
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import evaluate_heads
from salve_plugin.control.making import enhance, suppress
from salve_plugin.control.rivals import strengths_by_closure
from salve_plugin.control.writers.mask import mask
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features, profile
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.hooks import HookedModel


@dataclass(frozen=True)
class Experiment:
    """A hooked network with its recordings, a dictionary, and the dictionary's profile.

    Attributes:
        hooked: the network.
        train: recorded head inputs that dictionaries are learned on and edits chosen on.
        test: recorded head inputs that edits are judged on.
        dictionary: of the head's input.
        features: the dictionary's profile on `train`.
    """

    hooked: HookedModel
    train: Activations
    test: Activations
    dictionary: Dictionary
    features: Features

    def with_dictionary(self, dictionary: Dictionary) -> "Experiment":
        """Return the same experiment with another dictionary."""
        features = profile(dictionary, self.train)
        return replace(self, dictionary=dictionary, features=features)


@dataclass(frozen=True)
class ClassResult:
    """What suppressing one class does on the test images, by each means.

    Attributes:
        label: the class.
        recipe: the paper's edit, all rows, and its effect.
        named: the row-restricted edit and its effect.
        mask: the class's bias lowered beyond reach: no dictionary needed.
        zero_row: the class's row set to zero: none needed either.
        random: the paper's edit along a random direction; None where no strength flips enough.
    """

    label: int
    recipe: Choice
    recipe_change: Change
    named: Choice
    named_change: Change
    mask: Change
    zero_row: Change
    random: Change | None

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "label": self.label,
            "recipe": {**_edit_json(self.recipe.edit), "test": self.recipe_change.to_json()},
            "named_rows": {**_edit_json(self.named.edit), "test": self.named_change.to_json()},
            "mask": self.mask.to_json(),
            "zero_row": self.zero_row.to_json(),
            "random_direction": None if self.random is None else self.random.to_json(),
        }


def _edit_json(edit: Edit) -> dict[str, object]:
    rows = None if edit.rows is None else list(edit.rows)
    return {
        "latent": edit.latent,
        "strength": edit.gate.strength,
        "rows": rows,
        "sha256": edit.digest,
    }


def suppress_class(experiment: Experiment, label: int, *, seed: int) -> ClassResult:
    """Choose the edits for a class on the training images and measure them on the test images."""
    # The paper's edit is shown for what it costs, so that nothing it costs is too much.
    paper = SuppressClass(label, by="latents", rows=None, max_harm=1.0)
    recipe, named = (
        choose(
            experiment.hooked, goal, experiment.train,
            dictionary=experiment.dictionary, features=experiment.features,
        )
        # The demo's goal is about the others' mean: a single class may lose five points.
        for goal in (paper, SuppressClass(label, by="latents", max_harm=0.05))
    )  # fmt: skip
    weight, bias = experiment.hooked.unembed()
    random = random_control(recipe.edit, seed)
    strength = strength_to_break(experiment.hooked, random, experiment.train, label)
    reachable = strength < float("inf")
    random = random.with_strength(strength if reachable else 0.0)
    before, *after = evaluate_heads(
        [
            weight,
            edited_weight(weight, recipe.edit),
            edited_weight(weight, named.edit),
            without_class(weight, label),
            edited_weight(weight, random),
        ],
        bias,
        experiment.test,
    )
    effects = [change(before, evaluation, label) for evaluation in after]
    (masked,) = evaluate_heads([weight], _masked(bias, experiment, label), experiment.test)
    return ClassResult(
        label,
        recipe,
        effects[0],
        named,
        effects[1],
        change(before, masked, label),
        effects[2],
        effects[3] if reachable else None,
    )


def _masked(bias: Tensor, experiment: Experiment, label: int) -> Tensor:
    """Return the biases as `mask` makes them."""
    update = mask(experiment.hooked, label, experiment.train).operator.tensors
    result = bias.clone()
    result[label] += float(update["shift"][0])
    return result


@dataclass(frozen=True)
class Enhancement:
    """What enhancing a class's dominant latent on all rows does on the test images.

    Attributes:
        label: the class.
        latent: its dominant latent.
        strength: of the edit.
        confidence: mean probability of the class on its own images, before and after.
        drawn: share of the other classes' images labelled as the class, before and after.
        change: accuracies.
    """

    label: int
    latent: int
    strength: float
    confidence: tuple[float, float]
    drawn: tuple[float, float]
    change: Change


def enhance_class(experiment: Experiment, label: int, *, strength: float = 4.0) -> Enhancement:
    """Enhance the class's dominant latent on all rows, the paper's edit."""
    latent = experiment.features.dominant(label)
    edit = enhance(experiment.hooked, experiment.dictionary, latent=latent, strength=strength)
    weight, bias = experiment.hooked.unembed()
    heads = [weight, edited_weight(weight, edit)]
    before, after = evaluate_heads(heads, bias, experiment.test)
    class_rows = experiment.test.tensor()[experiment.test.labels() == label]
    confidence = [
        float(torch.addmm(bias, class_rows, head.T).softmax(1)[:, label].mean()) for head in heads
    ]
    drawn = []
    for evaluation in (before, after):
        others = evaluation.count.sum() - evaluation.count[label]
        wrong = evaluation.confusion[:, label].sum() - evaluation.confusion[label, label]
        drawn.append(float(wrong / others))
    return Enhancement(
        label,
        latent,
        strength,
        (confidence[0], confidence[1]),
        (drawn[0], drawn[1]),
        change(before, after, label),
    )


@dataclass(frozen=True)
class CrossClass:
    """What suppressing one latent that several classes share does to each of them.

    Attributes:
        latent: the shared latent.
        classes: the two classes whose mean codes lie furthest from the overall mean, on one side.
        strength: at which half of the first class's training images have lost their label.
        before: accuracy of every class on the test images.
        after: the same with the edit on all rows.
    """

    latent: int
    classes: tuple[int, int]
    strength: float
    before: tuple[float, ...]
    after: tuple[float, ...]


def cross_class(experiment: Experiment, *, rank: int = 0) -> CrossClass:
    """Suppress the latent that two classes share most, on all rows.

    Shared most: two class means lie far from the overall mean on one side of it, in units of the
    latent's spread over classes; the nearer of the two counts. Only recorded classes do.

    Args:
        experiment: the network, its recordings and its dictionary.
        rank: 0 for the latent that is shared most, 1 for the next, and so on.
    """
    recorded = (experiment.features.counts > 0).nonzero()[:, 0]
    means = experiment.features.means[recorded]
    distance = (means - means.mean(0)) / means.std(0).clamp(min=1e-12)
    # Codes are signed: classes at opposite ends of a latent share its axis, but not what it means.
    sides = torch.stack([distance, -distance]).topk(2, dim=1)
    nearer, side_of = sides.values[:, 1].max(dim=0)
    latent = int(nearer.argsort(descending=True, stable=True)[rank])
    side = int(side_of[latent])
    first, second = recorded[sides.indices[side, :, latent]].tolist()
    edit = suppress(experiment.hooked, experiment.dictionary, latent=latent, strength=0.0)
    strength = strength_to_break(experiment.hooked, edit, experiment.train, first, share=0.5)
    # If none takes half of them, the one that closes the most columns.
    if strength == float("inf"):
        strength = strengths_by_closure(edit.gate.reach)[-1]
    weight, bias = experiment.hooked.unembed()
    edited = edited_weight(weight, edit.with_strength(strength))
    before, after = evaluate_heads([weight, edited], bias, experiment.test)
    return CrossClass(
        latent,
        (first, second),
        strength,
        tuple(before.accuracy.tolist()),
        tuple(after.accuracy.tolist()),
    )
