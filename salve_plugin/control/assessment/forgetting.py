"""What a network still knows after an edit: probes, relearning, and nearest neighbours.

An edit of the classifier leaves the features as they were, so that a probe finds in them all that
it found before ("Illusion of Unlearning", arXiv 2604.08271): such an edit suppresses, and removes
nothing. What an edit of a hidden site removes there, later layers may still know another way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from salve_plugin.control.assessment.batches import Head
from salve_plugin.control.assessment.changes import check_subjects
from salve_plugin.control.assessment.marks import label_of, truth_values
from salve_plugin.control.assessment.probe import Probed, probe
from salve_plugin.control.assessment.relearning import relearned
from salve_plugin.control.assessment.site_features import LOGITS, site_features
from salve_plugin.control.assessment.sources import names_in
from salve_plugin.control.edit import Edit
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.faces.table import percent
from salve_plugin.hooks import HookedModel
from salve_plugin.integers import seed_number, whole
from salve_plugin.kinds import several
from salve_plugin.network import OnBaseMismatch

STEPS = (0, 1, 5, 20, 100)
SHUFFLES = 4
"""One shuffle of the marks of few images can be told apart by luck; the mean of several less."""

POINTS = 0.05
"""Five points: a probe that is no further above chance finds nothing."""


@dataclass(frozen=True)
class Recovery:
    """What a linear probe recovers at one site.

    Attributes:
        site: where; "logits" is the network's output.
        before: in the model without the edit.
        after: in the edited model.
        chance: mean balanced accuracy after the edit of the same probe for shuffled marks.
        of_classes: the same for marks shuffled within each class: what the classes alone tell of a
            concept that goes with some of them; None for a class.
    """

    __repr__ = one_line

    site: str
    before: Probed
    after: Probed
    chance: float
    of_classes: float | None = None

    @property
    def removed(self) -> bool:
        """Whether the probe finds nothing, or no more of a concept than the classes tell.

        Nothing is at most five points above chance. Where the classes told as much before the edit,
        nothing beyond them could have been removed, and chance alone is the measure.
        """
        return self._finds_nothing or self.left_to_classes

    @property
    def left_to_classes(self) -> bool:
        """Whether what the probe still finds of a concept is what the classes tell of it."""
        # An eraser that keeps the classes cannot take from a probe what they say: where 95 % of one
        # class have the concept and 5 % of another, to know the class is to know it there.
        told = self.of_classes
        if told is None or self._finds_nothing:
            return False
        return self.after.accuracy <= told + POINTS < self.before.accuracy

    @property
    def _finds_nothing(self) -> bool:
        return self.after.accuracy <= max(self.chance, 0.5) + POINTS


@dataclass(frozen=True)
class Forgetting:
    """What a network still knows after an edit.

    Attributes:
        edit: what was done, in a few words.
        recovery: by site, from the edited one on, in forward order, the logits last.
        neighbours: share of the marked images whose nearest neighbour among the others, by what the
            classifier reads, is marked, too: before and after; None without such a site.
        neighbours_chance: the same for neighbours drawn at random.
        steps: of fine-tuning.
        relearned: accuracy of the class after so many steps from the edited classifier, on images
            held out; empty for a concept.
        fresh: the same from the unedited model whose row of the class is zero: what learning the
            class anew takes.
    """

    __repr__ = one_line

    edit: str
    recovery: tuple[Recovery, ...]
    neighbours: tuple[float, float] | None
    neighbours_chance: float
    steps: tuple[int, ...]
    relearned: tuple[float, ...]
    fresh: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """One sentence that says "removed" only of sites where a probe finds nothing."""
        # What the logits no longer tell, the layers in front of them may: only these count as
        # removed.
        known = [each for each in self.recovery if each.site != LOGITS]
        still = [each for each in known if not each.removed]
        if not known or (still and len(still) == len(known)):
            best = max(self.recovery, key=lambda each: each.after.accuracy)
            return (
                "Suppressed at most, removed nowhere: a linear probe recovers it at every site "
                f"({best.site}: {percent(best.after.accuracy)} balanced)."
            )
        gone = [each for each in known if each.removed]
        beyond = ""
        if any(each.left_to_classes for each in gone):
            beyond = ", beyond what the classes tell of it"
        if not still:
            return (
                f"Removed from every site that was probed{beyond}, as far as a linear probe tells."
            )
        return (
            f"Removed at {gone[0].site}"
            + (f" and {len(gone) - 1} sites more" if len(gone) > 1 else "")
            + f"{beyond}, but still known at {still[-1].site} "
            f"({percent(still[-1].after.accuracy)} balanced)."
        )

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        fields = dict(vars(self))
        fields["recovery"] = [
            {
                "site": each.site,
                "before": vars(each.before),
                "after": vars(each.after),
                "chance": each.chance,
                "of_classes": each.of_classes,
                "removed": each.removed,
            }
            for each in self.recovery
        ]
        return fields


@torch.no_grad()
def forgetting(
    hooked: HookedModel,
    edit: Edit,
    loader: Iterable[Any],
    *,
    target: int | str | None = None,
    has: Sequence[bool] | Tensor | None = None,
    sites: Sequence[str] | None = None,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Forgetting:
    """Measure what a network still knows after an edit that was to make it forget.

    The model and an edited copy run once over the images, in eval mode; what they give is averaged
    over positions (class and register tokens apart) and kept in memory, four bytes a feature. At
    the site of an edit of hidden readers the features are taken as those readers get them.

    Args:
        hooked: the attached model, without the edit; nothing of it is different afterwards.
        edit: what was to make it forget.
        loader: (images, labels) batches, at least ten images of each kind.
        target: the class that was to go, by index or name.
        has: in its place, whether each image has the concept that was to go.
        sites: names of those to probe; by default the edited one and all later ones.
        steps: numbers of fine-tuning steps, ascending, from 0.
        seed: of folds, of shuffled marks, and of the half that is fine-tuned on.
        on_base_mismatch: "warn" goes on with another model than the edit's base.

    Raises:
        InputError: if neither or both of `target` and `has` are given, they do not fit the images,
            there are too few images or no sites, or the model's logits or features are not finite.
        UnknownSiteError: if a site is none of the model's.
        BaseMismatchError: if the model is not the edit's base.
    """
    check_subjects(hooked, edit)
    if (target is None) == (has is None):
        raise InputError(f"give target or has, one of them; got target={target!r}, has={has!r:.80}")
    given = several(steps, "steps", f"a list of numbers of steps, e.g. {STEPS}")
    numbers = tuple(sorted({whole(step, "a number of steps") for step in given}))
    if not numbers or numbers[0] < 0:
        raise InputError(f"steps {list(given)} are to be numbers of steps from 0 on, e.g. {STEPS}")
    seed = seed_number(seed)
    kind = "a list of at least one name, or None"
    names = _later(hooked, edit) if sites is None else several(sites, "sites", kind)
    if not names:
        raise InputError(f"sites {sites!r} are to be {kind}")
    chosen = [hooked.site(name) for name in names]
    label = None if target is None else label_of(target, names_in(loader, hooked))
    seen = site_features(hooked, edit, loader, chosen, on_base_mismatch)
    if has is None:
        assert label is not None  # one of the two is given
        marked = seen.labels.eq(label)
    else:
        marked = truth_values(has, len(seen.labels))
    shuffled = [marked[_order(len(marked), seed + at)] for at in range(SHUFFLES)]
    within = []
    if label is None:
        within = [_within(seen.labels, marked, seed + at) for at in range(SHUFFLES)]

    def by_chance(x: Tensor, marks: Sequence[Tensor]) -> float:
        return sum(probe(x, each, seed).accuracy for each in marks) / SHUFFLES

    recovery = []
    for name in [*(site.name for site in chosen), LOGITS]:
        before, after = seen.before[name].double(), seen.after[name].double()
        recovery.append(
            Recovery(
                name,
                probe(before, marked, seed),
                probe(after, marked, seed),
                by_chance(after, shuffled),
                by_chance(after, within) if within else None,
            )
        )
    neighbours = None
    heads, inputs = seen.heads, seen.inputs
    relearning: tuple[tuple[float, ...], ...] = ((), ())
    if inputs is not None:
        neighbours = (_neighbours(inputs[0], marked), _neighbours(inputs[1], marked))
        if label is not None and heads is not None:
            relearning = _relearning(heads, inputs, seen.labels, label, numbers, seed)
    return Forgetting(
        f"{edit.kind} of '{edit.site.name}', {edit.amount}",
        tuple(recovery),
        neighbours,
        # Of the others of a marked image.
        (float(marked.sum()) - 1) / (len(marked) - 1),
        numbers,
        *relearning,
    )


def _later(hooked: HookedModel, edit: Edit) -> list[str]:
    names = list(hooked.sites)
    return names[names.index(hooked.site(edit.site.name).name) :]


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _within(
    labels: Int64[Tensor, " images"], marked: Bool[Tensor, " images"], seed: int
) -> Bool[Tensor, " images"]:
    """Return the marks, shuffled among the images of each class."""
    # Both orders list the classes one after another; only the second mixes the images within each.
    order = labels.argsort(stable=True)
    mixed = _order(len(labels), seed)
    mixed = mixed[labels[mixed].argsort(stable=True)]
    shuffled = torch.empty_like(marked)
    shuffled[order] = marked[mixed]
    return shuffled


def _neighbours(x: Float64[Tensor, "images width"], marked: Bool[Tensor, " images"]) -> float:
    """Return the share of the marked images whose nearest other image is marked."""
    own = marked.nonzero()[:, 0]
    hits = 0
    for rows in torch.split(own, 256):
        # Not by the product of matrices: |a|² - 2ab + |b|² cancels just where neighbours are near.
        distance = torch.cdist(x[rows], x, compute_mode="donot_use_mm_for_euclid_dist")
        distance[torch.arange(len(rows)), rows] = torch.inf
        hits += int(marked[distance.argmin(1)].sum())
    return hits / len(own)


def _relearning(
    heads: tuple[Head, Head],
    inputs: tuple[Tensor, Tensor],
    labels: Int64[Tensor, " images"],
    label: int,
    steps: tuple[int, ...],
    seed: int,
) -> tuple[tuple[float, ...], ...]:
    """Fine-tune on one half of each kind, and count on the other."""
    half = torch.zeros(len(labels), dtype=torch.bool)
    # Each kind apart: of few images of the class one half could get nearly all.
    for kind in (labels == label, labels != label):
        at = kind.nonzero()[:, 0]
        half[at[_order(len(at), seed)[: len(at) // 2]]] = True
    fresh = heads[0].weight.clone()
    fresh[label] = 0
    starts = ((heads[1], inputs[1]), (Head(fresh, heads[0].bias), inputs[0]))
    return tuple(
        relearned(
            head, x[half], labels[half], (x[~half], labels[~half]), label, steps
        )
        for head, x in starts
    )  # fmt: skip
