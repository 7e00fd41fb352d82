"""The parts of an assessment, as typed records that travel in an artifact."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import listed, one_line
from salve_plugin.store.record import Index, ParameterPath, Record, Sha256

Share = Annotated[float, Meta(ge=0, le=1)]
Shares = tuple[Share, Share]
"""Before and after the edit."""
Amount = Annotated[float, Meta(ge=0)]
Difference = Annotated[float, Meta(ge=-1, le=1)]

Command = Literal[
    "salve evaluate ARTIFACT --data FOLDER",
    "salve evaluate ARTIFACT --data FOLDER --checkpoint FILE",
]
"""A closed vocabulary: cards show it to people as a line to type."""

ControlName = Literal[
    "mask", "zero row", "difference of means", "random latent", "random direction"
]


@dataclass(frozen=True)
class ClassOutcome(Record):
    """One class: that of some images, or of a row of the classifier that the edit touched.

    Attributes:
        accuracy: share of its images that are labelled rightly; null without images.
        bias_change: of its row.
        count: number of its images.
        destination: the other class that most of its images are labelled as after the edit; null
            if none is labelled as another.
        destination_share: the share of its images that are.
        label: the class.
        name: of the class, if known.
        probability: mean probability of the class on its own images; null without images.
        spread: standard deviation of the class's logit over all images: a row that is zeroed has 0.
        weights_changed: weights of its row that differ.
        weights_zeroed: those that became zero and were not.
    """

    __repr__ = one_line

    accuracy: Shares | None
    bias_change: float
    count: Index
    destination: Index | None
    destination_share: Share
    label: Index
    name: Annotated[str, Meta(max_length=1000)] | None
    probability: Shares | None
    spread: tuple[Amount, Amount]
    weights_changed: Index
    weights_zeroed: Index

    def __post_init__(self) -> None:
        """Check that what needs images is there with images only.

        Raises:
            InputError: names the class.
        """
        has_images = self.count > 0
        # A share of no images would be 0 / 0, which JSON does not have.
        if (self.accuracy is None, self.probability is None) != (not has_images, not has_images):
            raise InputError(
                f"class {self.label} has {self.count} images, accuracy {self.accuracy} and "
                f"probability {self.probability}; both are for classes with images, and only those"
            )


@dataclass(frozen=True)
class Ideal(Record):
    """The distance to the ideal suppression: probabilities renormalized without the class.

    Attributes:
        kl_others: mean KL(ideal || edited) in nats on the other classes' images; null without any.
        kl_target: the same on the class's images.
        others_agree: share of the other classes' images that get the ideal's label; null without
            any.
        runner_up: share of the class's images that get the label of the base's runner-up.
    """

    kl_others: Amount | None
    kl_target: Amount
    others_agree: Share | None
    runner_up: Share


@dataclass(frozen=True)
class ConceptOutcome(Record):
    """What a concept in the images does to the labels.

    Attributes:
        accuracy_with: share of the images with the concept labelled rightly; null without any.
        accuracy_without: the same of those without it.
        flips: share of pairs, the same image with and without it, labelled differently; null
            without pairs.
        worst_class: of the worst group.
        worst_group: the least accuracy among the groups (class, with or without).
        worst_has: whether the worst group has the concept.
    """

    __repr__ = one_line

    accuracy_with: Share | None
    accuracy_without: Share | None
    flips: Share | None
    worst_class: Index
    worst_group: Share
    worst_has: bool


@dataclass(frozen=True)
class Effect(Record):
    """What an edit, or a control in its place, does on all images.

    Attributes:
        accuracy: share of all images labelled rightly afterwards.
        concept: what the concept still does, where the edit is about one.
        ideal: the distance to the ideal, where the edit is to suppress a class.
        kl_others: mean KL(before || after) in nats on all images that are not the target's; null
            without any.
        others: mean change of the accuracy of the classes that are not the target, each counting
            once; null without any.
        target: accuracy of the target class afterwards.
        worst: the most negative change among the other classes.
        worst_label: the class where that is.
    """

    __repr__ = one_line

    accuracy: Share
    concept: ConceptOutcome | None
    ideal: Ideal | None
    kl_others: Amount | None
    others: Difference | None
    target: Share | None
    worst: Difference | None
    worst_label: Index | None


@dataclass(frozen=True)
class Control(Record):
    """Something that needs no concept, done in the edit's place and measured on the same images.

    Attributes:
        effect: what it does.
        name: which. mask: the class's logit is lowered beyond reach. zero row: the class's weights
            are zero, its bias stays. The others take one direction out of the rows that the edit
            changes in the classifier, in such a measure that the change has the edit's norm; if it
            changes none, out of the class's row. Of a concept the difference of means is projected
            out of every row, and the mean stays.
        norm: Frobenius norm of the change of the classifier's weight; null of the mask, which is
            one of a bias.
    """

    __repr__ = one_line

    effect: Effect
    name: ControlName
    norm: Amount | None


MOST_ALONE = 20
"""Latents of an edit that are looked at one by one; of more, only all together."""
MOST_RUN = 16
"""Images on which predictions of a hidden edit's effect are compared, each with some 20 passes."""


@dataclass(frozen=True)
class Prediction(Record):
    """How far the codes of some latents say what the edit does to the logits.

    Predicted is what their contribution Σ z_l v_l adds to the logits, taken away (or added, by an
    edit that enhances), for the classes whose rows the edit changes; measured is what it does. At a
    hidden site it is the gradient of all logits times that contribution, summed over positions, on
    up to `MOST_RUN` random images of those that are assessed.

    Attributes:
        explained: share of the measured change's sum of squares, over images and classes, that is a
            multiple of the predicted one.
        explained_null: what 95 % of as many other latents, in their place, stay at or below; null
            if there are none.
        latents: which.
        r2: squared correlation over images of the two for the target's logit; null if there is no
            target, or either is the same for all images.
        slope: measured change of that logit for one unit of predicted change, likewise.
    """

    __repr__ = one_line

    explained: Share
    explained_null: Share | None
    latents: Annotated[tuple[Index, ...], Meta(min_length=1)]
    r2: Share | None
    slope: float | None

    def __post_init__(self) -> None:
        """Check that a latent is named once, and the line is given as a whole.

        Raises:
            InputError: names what contradicts.
        """
        # Bounds in the types are asked of files only, so that these are asked here, too.
        if not self.latents or len(set(self.latents)) < len(self.latents):
            raise InputError(
                f"a prediction is of some latents, each once; got {listed(self.latents)}"
            )
        if (self.r2 is None) != (self.slope is None):
            raise InputError(
                f"R² {self.r2} and slope {self.slope} are of one line: give both or neither"
            )

    @property
    def holds(self) -> bool:
        """Whether the codes predict more than 95 % of other latents in their place do."""
        # Without other latents, anything at all is more than they predict.
        return self.explained > (self.explained_null or 0.0)


@dataclass(frozen=True)
class ParameterBudget(Record):
    """What an edit changes in one parameter.

    Attributes:
        changed: number of entries that differ.
        norm: Frobenius norm of the change.
        path: of the parameter.
        rank: of the change: its singular values beyond what rounding to the parameter's type alone
            could make, eps times the norm of the edited parameter.
        relative: `norm` over the norm of the parameter before; null if that is zero.
    """

    changed: Index
    norm: Amount
    path: ParameterPath
    rank: Index
    relative: Amount | None


@dataclass(frozen=True)
class Budget(Record):
    """What an edit spends.

    Attributes:
        bytes: of the operator's tensors, which are what travels.
        parameters: what is changed in each, by path.
    """

    __repr__ = one_line

    bytes: Index
    parameters: Annotated[tuple[ParameterBudget, ...], Meta(max_length=256)]

    @property
    def changed(self) -> int:
        """Number of changed weights and biases."""
        return sum(each.changed for each in self.parameters)

    @property
    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        return math.hypot(*(each.norm for each in self.parameters))

    @property
    def weight_norm(self) -> float:
        """The same of the weights alone: what the norms of controls are of."""
        # Every target's bias is called so, its own or that of a BatchNorm behind it.
        weights = (each for each in self.parameters if not each.path.endswith("bias"))
        return math.hypot(*(each.norm for each in weights))


@dataclass(frozen=True)
class Evidence(Record):
    """What was measured on which model, so that anybody can measure again and compare.

    Attributes:
        command: the command that does, with names in place of the user's own paths.
        images: SHA-256 of the images, see `Activations.images_sha256`; null if a
            recording does not know it.
        labels: SHA-256 of their labels (int64, in order).
        model: digest over all tensors of the model before the edit, see `state_digest`.
        recording: SHA-256 over the recorded inputs of the classifier (float32, in order); null if
            the network ran.
        seed: of the random controls.
    """

    __repr__ = one_line

    command: Command
    images: Sha256 | None
    labels: Sha256
    model: Sha256
    recording: Sha256 | None
    seed: Index
