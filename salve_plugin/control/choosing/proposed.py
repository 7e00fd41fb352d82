"""Hidden edits that nobody has made yet, fitted to the very images that they are judged on.

Each set of sites is edited once for each fold of the images, fitted without it, so that what the
classifier gets of the fold is unseen; and once fitted to all images, which are the edits that are
returned. Within a set the sites are worked off by depth, as `erase_through` does.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from salve_plugin.control.choosing.concept_edits import folds
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.choosing.hidden_sites import SiteSet, takes_offset
from salve_plugin.control.choosing.view import View
from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.edit import Edit
from salve_plugin.control.erasers import directional_ablation, leace, repair
from salve_plugin.control.making import edit_at
from salve_plugin.control.operators import LowRankMap
from salve_plugin.control.provenance import Provenance
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record


@dataclass(frozen=True, eq=False)
class Proposal:
    """Edits of a set of hidden sites, and what the classifier gets with them in place.

    Attributes:
        name: in a few words.
        edits: by depth, fitted to all images.
        view: with those in place.
        unseen: for each of `folds`, with edits in place that were fitted without it.
    """

    name: str
    edits: tuple[Edit, ...]
    view: View
    unseen: tuple[View, ...]


@dataclass(frozen=True, eq=False)
class Proposer:
    """Makes the hidden edits of sets of sites.

    Attributes:
        head: the classifier with the concept's images.
        concept: to take out.
        images: a loader for each of the concept's recordings.
        clean: by site, the unmarked images of pairs in the model as it was given: where the marked
            ones are to come back to, whatever earlier edits do.
    """

    head: JudgedHead
    concept: Concept
    images: Sequence[Iterable[Any]]
    clean: Mapping[str, Activations]

    @classmethod
    def of(
        cls, head: JudgedHead, concept: Concept, images: Sequence[Iterable[Any]],
        sites: Sequence[str],
    ) -> "Proposer":  # fmt: skip
        """Record what is needed of the model without edits."""
        own = cls(head, concept, images, {})
        clean = {site: own._recorded(-1, site) for site in sites if concept.is_paired}
        return replace(own, clean=clean)

    def proposal(self, sites: SiteSet) -> Proposal:
        """Return the edits of a set of sites; the model is as it was when this returns or fails."""
        every = torch.ones(self.concept.n_images, dtype=torch.bool)
        edits: tuple[Edit, ...] = ()
        erasers: list[str] = []
        views = []
        # All images last: the edits of that round are those that are returned.
        for keep in (*(~own for own in folds(self.concept)), every):
            with ExitStack() as stack:
                edits, erasers = self._fitted(sites, keep, stack)
                views.append(View.now(self.head, self.concept, self.images))
        *unseen, view = views
        first, last = sites.sites[0], sites.sites[-1]
        where = f"{len(edits)} hidden sites ({first} to {last})" if len(edits) > 1 else first
        return Proposal(f"{', '.join(erasers)} at {where}", edits, view, tuple(unseen))

    def _fitted(
        self, sites: SiteSet, keep: Bool[Tensor, " images"], stack: ExitStack
    ) -> tuple[tuple[Edit, ...], list[str]]:
        """Return edits fitted to some images, which stay on until the stack ends; how, in words."""
        hooked, edits = self.head.hooked, []
        erasers: dict[str, None] = {}  # each once, in order
        # Of pairs only the marked image is recorded anew.
        numbers = range(1 if self.concept.is_paired else len(self.images))
        for site in sites.sites:
            recorded = [self._recorded(number, site) for number in numbers]
            clean = [self.clean[site]] if self.concept.is_paired else []
            there = self._at_site((*recorded, *clean))
            has_offset = takes_offset(hooked, hooked.site(site))
            operator, eraser = _eraser(there, keep, sites.rank, has_offset=has_offset)
            known = Provenance.of_concept(f"{eraser} of {self.concept.note}")
            edit = edit_at(hooked, site, operator, provenance=known)
            # It stays on, so that the next site is recorded as this edit leaves it.
            stack.enter_context(edit.applied(hooked.model))
            edits.append(edit)
            erasers[eraser] = None
        return tuple(edits), list(erasers)

    def _recorded(self, number: int, site: str) -> Activations:
        return record(self.head.hooked, self.images[number], site, progress=False)

    def _at_site(self, recordings: tuple[Activations, ...]) -> Concept:
        """Return the concept of the same images as another site holds it."""
        flags = self.concept.flags()
        parts = torch.split(flags.double(), [acts.n_images for acts in recordings])
        values = torch.cat(
            [
                part.repeat_interleave(acts.n_rows // acts.n_images)
                for part, acts in zip(parts, recordings, strict=True)
            ]
        )
        # Nothing here reads along a direction, and that of another site would have its width.
        read = torch.zeros(recordings[0].width, dtype=torch.float64)
        return Concept(
            self.concept.name, "labels", recordings, values, flags, read, self.concept.groups
        )


def _eraser(
    concept: Concept, keep: Bool[Tensor, " images"], rank: int, *, has_offset: bool
) -> tuple[LowRankMap, str]:
    """Return the map that takes a concept out of its site, fitted to some images, and its name.

    Where the layers take no offset it is one about zero.
    """
    if concept.is_paired:
        moments = concept.pair_moments(keep, "mean" if has_offset else "origin")
        return repair(moments, rank=rank), f"repair of rank {rank}" + " about zero" * (
            not has_offset
        )
    balanced = concept.moments(balanced=True, keep=keep)
    if has_offset:
        return leace(balanced), "leace, groups balanced"
    return directional_ablation(balanced, centre="origin"), "balanced difference of means"
