"""A planted shortcut: a network that reads a mark instead of the digit, and what edits do to it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.control.choosing.candidate import Choice
from salve_plugin.control.choosing.choose import choose
from salve_plugin.control.choosing.goals import RemoveShortcut
from salve_plugin.control.choosing.latent_edits import edited_weight
from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.concepts.finding import find_concept
from salve_plugin.control.edit import Edit
from salve_plugin.control.making import suppress
from salve_plugin.demo import digits
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit
from salve_plugin.hooks import HookedModel

LABEL = 3
OFTEN, SELDOM = 0.96, 0.04
"""Share of the class's training pictures, and of all others', that have the mark."""

TRAINED = 1000
"""Digits that the network is trained on; on the rest of the training split edits are chosen, since
what a network has learned by heart tells nothing of what it goes by."""

CONTRAST, NOISE = 0.5, 0.5
"""Digits are faint and noisy here: a shortcut is taken where the long way is harder."""

MARK = 6
"""Side of the white square in the upper left corner, in pixels of 32."""

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Strengths at which the paper's gate is tried; the best one on the recorded pictures is taken."""

MIN_GAIN = 0.2
"""Accuracy that the worst group is asked to gain."""


@dataclass(frozen=True)
class ShortcutEffect:
    """What a network does with test pictures, each with and without the mark.

    Attributes:
        method: which edit.
        flips: share of the pictures that are labelled otherwise with the mark than without.
        worst: accuracy of the worst group of class and mark.
        plain: accuracy on pictures without the mark.
        own: accuracy on the class's pictures without its mark.
    """

    method: str
    flips: float
    worst: float
    plain: float
    own: float


@dataclass(frozen=True)
class ShortcutResult:
    """The planted shortcut on one network.

    Attributes:
        effects: of no edit, the paper's gate, the chosen edit, and the controls.
        verdict: of the choice.
        auc: held-out, of finding the mark in the recorded pictures.
    """

    effects: tuple[ShortcutEffect, ...]
    verdict: str
    auc: float


def marked(images: Tensor, has: Tensor) -> Tensor:
    """Return the images with the mark where it is to be."""
    result = images.clone()
    result[has, :, :MARK, :MARK] = digits.WHITE
    return result


def faint(data: digits.Split, seed: int) -> digits.Split:
    """Return the pictures with less contrast and with noise."""
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(seed))
    return digits.Split(CONTRAST * data.images + NOISE * noise, data.labels)


def planted(data: digits.Split, seed: int = 0) -> digits.Split:
    """Return the pictures with marks that go with the class."""
    draw = torch.rand(len(data.labels), generator=torch.Generator().manual_seed(seed))
    has = draw < torch.where(data.labels == LABEL, OFTEN, SELDOM)
    return digits.Split(marked(data.images, has), data.labels)


def run_shortcut(
    name: digits.NetworkName, train: digits.Split, test: digits.Split, folder: Path
) -> ShortcutResult:
    """Train a network on marked digits, find the mark, remove it, and measure on test digits.

    Args:
        name: which of the two networks.
        train: digits to mark, train on and record.
        test: digits to measure on, each with and without the mark.
        folder: for the recording.
    """
    train, test = faint(train, 1), faint(test, 2)
    own = digits.Split(train.images[:TRAINED], train.labels[:TRAINED])
    hooked = attach(digits.train(name, planted(own)))
    rest = digits.Split(train.images[TRAINED:], train.labels[TRAINED:])
    every = torch.ones(len(rest.labels), dtype=torch.bool)
    with_, without = (
        record(
            hooked, digits.Split(marked(rest.images, has), rest.labels).loader(),
            folder=folder / "activations" / f"shortcut-{kind}", progress=False,
        )
        for kind, has in (("with", every), ("without", ~every))
    )  # fmt: skip
    concept = find_concept(with_, without=without, name="white square")
    choice = choose(hooked, RemoveShortcut(concept, min_gain=MIN_GAIN, max_harm=0.02))
    controls = {
        "leace as published": _of(choice, "leace as published, all rows"),
        "head refitted, groups balanced": _of(choice, "head refitted, all rows"),
    }
    edits = {"the paper's gate": _gate(hooked, concept), "chosen": choice.edit, **controls}
    effects = [_effect("no edit", hooked.model, test)]
    for method, edit in edits.items():
        with edit.applied(hooked.model):
            effects.append(_effect(method, hooked.model, test))
    assert concept.evidence is not None  # images with and without were given
    return ShortcutResult(tuple(effects), choice.verdict, concept.evidence.auc)


def _gate(hooked: HookedModel, concept: Concept) -> Edit:
    """Return the paper's edit of the latent that tells the mark best, at its best strength.

    The best on the recorded pictures: by the accuracy of the worst group, so that the gate is given
    every chance.
    """
    acts = concept.recordings[0]
    dictionary = fit(acts, "l1", seed=0)
    codes = torch.cat([dictionary.encode(batch.x).double() for batch, _ in concept.rows()])
    shift = codes[concept.flags()].mean(0) - codes[~concept.flags()].mean(0)
    latent = int((shift.abs() / codes.std(0)).argmax())
    weight, bias = hooked.unembed()
    x = torch.cat([batch.x for batch, _ in concept.rows()])
    groups, labels = 2 * concept.labels() + concept.flags(), concept.labels()

    def worst(edit: Edit) -> float:
        right = (torch.addmm(bias, x, edited_weight(weight, edit).T).argmax(1) == labels).double()
        return min(float(right[groups == group].mean()) for group in set(groups.tolist()))

    gates = [
        suppress(hooked, dictionary, latent=latent, strength=strength) for strength in STRENGTHS
    ]
    return max(gates, key=worst)


def _of(choice: Choice, method: str) -> Edit:
    """Return the edit of a candidate by the beginning of its name."""
    return next(one.edit for one in choice.tried if one.method.startswith(method))


@torch.no_grad()
def _effect(method: str, network: nn.Module, test: digits.Split) -> ShortcutEffect:
    every = torch.ones(len(test.labels), dtype=torch.bool)
    with_, without = (network(marked(test.images, has)).argmax(1) for has in (every, ~every))
    groups = [
        float((predicted == test.labels)[test.labels == label].double().mean())
        for label in range(len(digits.CLASSES))
        for predicted in (with_, without)
    ]
    right = (without == test.labels).double()
    return ShortcutEffect(
        method,
        float((with_ != without).double().mean()),
        min(groups),
        float(right.mean()),
        float(right[test.labels == LABEL].mean()),
    )
