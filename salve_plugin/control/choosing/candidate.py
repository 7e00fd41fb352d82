"""What was tried for a goal, and what was taken of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salve_plugin.control.choosing.goals import Goal
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import DIGITS
from salve_plugin.faces.one_line import shortened
from salve_plugin.faces.table import Table, Tabular, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HAIR = 0.0025
"""Harms are compared in steps of a quarter of a point: less is chance."""

LOSS = 0.01
"""Losses are compared in steps of a hundredth of a nat: where all are small, the least is that of
the largest weights."""


@dataclass(frozen=True, eq=False, repr=False)
class Candidate:
    """One edit that was tried.

    Attributes:
        method: what it is, in a few words: "mask", "latent 12, rows of rivals", "leace, all rows".
        edit: what was tried.
        effect: how much of the goal it reaches; the goal names the unit. Higher is better.
        harm: what it costs: the largest loss of accuracy among what is to be kept; below 0 is a
            gain.
        figures: everything that was measured, by name.
        is_control: whether it needs no concept and no feature: what a good edit has to beat.
        lead: breaks ties: by how much the decision is missed or made, the lower the better.
        error: standard error of the effect, where the images are few enough to matter.
        loss: cross-entropy of the worst group in nats, which tells apart what does as well within
            that error; 0 where it is not asked.
        hidden: edits of hidden layers that it was tried together with, in order of depth.
    """

    method: str
    edit: Edit
    effect: float
    harm: float
    figures: Mapping[str, float]
    is_control: bool = False
    lead: float = 0.0
    error: float = 0.0
    loss: float = 0.0
    hidden: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        """Take the rounding off the differences, which are compared with bounds."""
        object.__setattr__(self, "effect", round(self.effect, DIGITS))
        object.__setattr__(self, "harm", round(self.harm, DIGITS))

    def __repr__(self) -> str:
        """Say in one line what was tried and how it did."""
        kind = "control" if self.is_control else "Candidate"
        return shortened(
            f"<{kind} {self.method}: effect {self.effect:.3f}, harm {self.harm:.3f}; "
            f"{self.edit.kind}, {self.edit.amount}>"
        )

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "method": self.method, "edit": self.edit.digest, "kind": self.edit.kind,
            "amount": self.edit.amount, "effect": self.effect, "harm": self.harm,
            "figures": dict(self.figures), "control": self.is_control,
            "hidden": [edit.digest for edit in self.hidden],
            "sites": [edit.site.name for edit in self.hidden],
        }  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Choice(Tabular):
    """The edit that was chosen for a goal, and what else was tried.

    Attributes:
        goal: what was asked for.
        chosen: the candidate that was taken. It never costs more than the goal's `max_harm`.
        met: whether it reaches every part of the goal.
        tried: every candidate, in the order tried, those that cost too much included.
        unreachable: latents with which no strength does anything for the goal.
        enough: the effect that the goal asks for.
    """

    goal: Goal
    chosen: Candidate
    met: bool
    tried: tuple[Candidate, ...]
    enough: float
    unreachable: tuple[int, ...] = ()

    @property
    def edit(self) -> Edit:
        """The edit of the classifier that was chosen; see `edits` where hidden ones go with it."""
        return self.chosen.edit

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits that were chosen, by depth: apply all of them."""
        return (*self.chosen.hidden, self.chosen.edit)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other one beats in effect and in harm, by effect."""
        ordered = sorted(self.tried, key=lambda one: (-one.effect, one.harm))
        # From the most effect on: whatever follows reaches less, and is on the front only if it
        # costs less than all before it.
        front: list[Candidate] = []
        for candidate in ordered:
            if not front or candidate.harm < front[-1].harm:
                front.append(candidate)
        return tuple(reversed(front))

    @property
    def verdict(self) -> str:
        """In words: what was taken, whether that is enough, and whether a control does as well."""
        taken, bound = self.chosen, self.goal.max_harm
        says = (
            f"{taken.method}: effect {taken.effect:.3f} of {self.enough:.3f} asked for, harm "
            f"{taken.harm:.3f} of {bound:.3f} allowed"
        )
        if not self.met:
            # There may be some: what costs more than is allowed is never taken.
            beyond = [one for one in self.tried if one.effect >= self.enough]
            says = f"NOT MET. {says}"
            if beyond:
                least = min(beyond, key=lambda one: one.harm)
                says += f"; what reaches it costs at least {least.harm:.3f} ({least.method})"
        if not taken.is_control:
            rivals = [
                one for one in self.tried
                if one.is_control and one.effect >= taken.effect - HAIR
                and one.harm <= taken.harm + HAIR
            ]  # fmt: skip
            if rivals:
                best = min(rivals, key=lambda one: (one.harm, -one.effect))
                says += (
                    f". {best.method}, which needs no feature, does as well: effect "
                    f"{best.effect:.3f}, harm {best.harm:.3f}"
                )
        return f"{says}. Hidden edits: {_sites(taken.hidden)}" if taken.hidden else says

    def __repr__(self) -> str:
        """Say in one line what was chosen and whether it is enough."""
        return shortened(f"<Choice for {type(self.goal).__name__}: {self.verdict}>")

    def as_table(self) -> Table:
        """Return all that was tried: what was chosen, the front, then the others by effect."""
        front = set(map(id, self.front))
        others = [one for one in self.tried if one is not self.chosen]
        others.sort(key=lambda one: (id(one) not in front, -one.effect, one.harm))
        rows = [
            (
                "chosen" if one is self.chosen else "front" if id(one) in front else "",
                one.method, f"{one.effect:.3f}", f"{one.harm:.3f}", one.edit.amount,
                "control" if one.is_control else "",
            )
            # Where nothing is good enough, what is chosen is no edit, which was not tried.
            for one in (self.chosen, *others)
        ]  # fmt: skip
        return Table(
            f"{type(self.goal).__name__}: {'met' if self.met else 'NOT MET'} (effect of at least "
            f"{shown(self.enough)}, harm of at most {shown(self.goal.max_harm)})",
            ("", "method", "effect", "harm", "amount", ""),
            rows,
            (self.verdict, *self._hidden_sets()),
        )

    def _hidden_sets(self) -> list[str]:
        """Say of each set of hidden edits but the chosen one what is at which site."""
        sets = {one.hidden: one.method.partition(": ")[0] for one in self.tried if one.hidden}
        return [
            f"{name}: {_sites(hidden)}" for hidden, name in sets.items()
            if hidden != self.chosen.hidden
        ]  # fmt: skip

    def figure(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw effect against harm of all that was tried, with the bounds of the goal.

        Args:
            path: also write it there, in the format of the suffix (PNG without one).

        Raises:
            InputError: if matplotlib does not know the format.
            WriteError: if the file cannot be written.
        """
        from salve_plugin.faces.choice import choice_figure

        return choice_figure(self).written(path)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "goal": type(self.goal).__name__,
            "met": self.met,
            "enough": self.enough,
            "max_harm": self.goal.max_harm,
            "verdict": self.verdict,
            "chosen": self.chosen.to_json(),
            "tried": [candidate.to_json() for candidate in self.tried],
            "unreachable": list(self.unreachable),
        }


def _sites(hidden: Sequence[Edit]) -> str:
    kinds: dict[str, list[str]] = {}
    for edit in hidden:
        # Edits of many sites are mostly of one kind, which is named once.
        kinds.setdefault(f"{edit.kind}, {edit.amount}", []).append(edit.site.name)
    return "; ".join(f"{kind} at {', '.join(names)}" for kind, names in kinds.items())


def best_of(
    tried: list[Candidate], enough: float, max_harm: float, *, by_loss: bool = True
) -> tuple[Candidate, bool]:
    """Return the candidate to take, and whether it meets the goal.

    Of those that cost no more than allowed: one that reaches the goal before one that does not;
    then the least cost (the others' mean loss, or the harm), to `HAIR`; then the least lead, since
    new images follow it; then the most effect; then the first.
    One that costs more is not taken, whatever it reaches. Where effects have a standard error,
    all within one of the best do as well (Breiman et al. 1984): of many candidates the best on few
    images is best by luck. Of those the one of least loss is taken, in steps of `LOSS`; then the
    first, and the list begins with what is published and goes from simple to elaborate.
    Where all cost more, as hidden edits alone may, it is the one that costs least, and not met.

    Args:
        tried: in the order in which they are preferred.
        enough: the effect that the goal asks for.
        max_harm: what it may cost.
        by_loss: whether the least loss comes before the order; without it a later candidate is
            taken only for what it does.
    """
    allowed = [one for one in tried if one.harm <= max_harm]
    if not allowed:
        return min(tried, key=lambda one: one.harm), False

    def order(one: Candidate) -> tuple[float, int, float, float]:
        missed = max(0.0, enough - one.effect)
        # A missed goal is missed by so much; a reached one is not reached more by going further.
        cost = one.figures.get("mean loss elsewhere", one.harm)
        return missed, int(max(0.0, cost) / HAIR), one.lead, -one.effect

    best = min(allowed, key=order)
    level = best.effect - best.error
    # Where the best one reaches the goal, what falls short of it is not as good, however close it
    # comes.
    level = max(level, enough) if best.effect >= enough else level
    as_good = [
        one for one in allowed
        if one.error and one.effect >= level and one.harm <= max(0.0, best.harm) + HAIR
    ]  # fmt: skip
    chosen = best
    if best.error and as_good:
        chosen = min(as_good, key=lambda one: int(one.loss / LOSS)) if by_loss else as_good[0]
    return chosen, chosen.effect >= enough
