"""Erasing a concept from several sites jointly: each edit is fitted with all earlier ones in place.

A network builds a concept up over its depth: what one site loses, later layers compute again from
what is left. So the sites are worked off in the order in which a forward pass meets them, and each
eraser sees the activations that the edits before it leave.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.concepts.finding import find_concept
from salve_plugin.control.edit import Edit
from salve_plugin.control.erasers import Centre
from salve_plugin.control.erasing import Eraser, eraser_map
from salve_plugin.control.making import edit_at
from salve_plugin.control.operators import LowRankMap, Role
from salve_plugin.control.provenance import Provenance
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.kinds import of_kind, several

Profile = Literal["uniform", "depth"]
"""How much is removed at each site: all, or as much as a probe finds the concept there."""

BATCH = 64
"""Images in one forward pass, where they are given as a tensor."""

Images = Float[Tensor, "_ channels height width"] | Iterable[Any]
"""Images, or a loader of (images, labels) batches that can be read again and again."""


def erase_through(
    hooked: HookedModel,
    with_images: Images,
    without_images: Images,
    sites: Sequence[str],
    eraser: Eraser = "leace",
    *,
    labels: Int[Tensor, " _"] | None = None,
    groups: Sequence[int] | Tensor | None = None,
    profile: Profile = "uniform",
    role: Role | Mapping[str, Role] | None = None,
    shrinkage: float | None = None,
    balanced: bool = True,
    rank: int = 1,
    centre: Centre = "mean",
    name: str = "concept",
    seed: int = 0,
) -> tuple[Edit, ...]:
    r"""Return the permanent edits that together take a concept out of several sites.

    The model is edited while this runs, and every bit is back when it returns or fails. `repair`
    takes what the edits so far leave of the marked pictures back to the unmarked pictures'
    activations in the model as it was given, so that later sites make up for earlier ones.

    The profile "depth" removes the share $\max(0, 2\,(AUC - 1/2))$ at each site, with the area
    under the curve of a held-out probe there: little where the concept is not yet formed, and all
    where it is separable. It follows the idea of DAMP (Hatami et al. 2026, arXiv 2604.15166), which
    scales its projections by probe separability; the formula is ours. A site where no probe beats a
    coin gets no edit.

    Args:
        hooked: the attached model; edits on it stay on it.
        with_images: with the concept; as a tensor, or a list or DataLoader of (images, labels).
        without_images: the same for those without. If they are as many with equal labels, in the
            same order, image i of both is taken for a pair.
        sites: names, in any order; they are worked off by depth.
        eraser: how, see `erase`; one that needs no dictionary.
        labels: classes (images,) of images that are given as tensors, of both alike; None: all of
            one class.
        groups: as for `find_concept`.
        profile: "uniform" or "depth".
        role: as for `edit_at`, "reader" or "writer", at every site or by site; sites that it does
            not name are edited as `edit_at` does by default.
        shrinkage: as for `erase`.
        balanced: as for `erase`.
        rank: as for `erase`.
        centre: as for `erase`, at every site.
        name: of the concept, for sentences.
        seed: of the evidence at each site.

    Returns:
        One edit a site, by depth, all to be applied together: `for edit in edits:
        edit.apply_(model)`.

    Raises:
        InputError: if a site is named twice, an option is unknown, images and labels do not fit, or
            the eraser needs a dictionary or finds nothing.
        UnknownSiteError: if the model has no such site.
        UnsupportedModelError: as for `edit_at`.
    """
    check_attached(hooked)
    ordered = _by_depth(hooked, sites)
    if profile not in get_args(Profile):
        raise InputError(f"profile {profile!r} is unknown; choose 'uniform' or 'depth'")
    if isinstance(role, Mapping):
        given = {site: hooked.site(site).name for site in sites}
        role = {given.get(name, name): own for name, own in role.items()}
        if set(role) - set(ordered):
            raise InputError(f"role names {sorted(set(role) - set(ordered))}, not among {ordered}")
    if eraser in ("fold", "posterior", "safree"):
        raise InputError(
            f"'{eraser}' takes out latents, and every site would need a dictionary of its own; "
            "choose an eraser that works on activations, such as 'leace'"
        )
    marked, plain = (_batches(images, labels) for images in (with_images, without_images))
    edits: list[Edit] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="salve-through-")))

        def recorded(batches: Iterable[Any], site: str, kind: str) -> Activations:
            return record(
                hooked, batches, site, folder=folder / f"{ordered.index(site)}-{kind}",
                progress=False,
            )  # fmt: skip

        # Before any edit is in place: it is the unedited network that is to come back.
        goals = {site: recorded(plain, site, "goal") for site in ordered if eraser == "repair"}
        for site in ordered:
            concept = find_concept(
                recorded(marked, site, "with"), without=recorded(plain, site, "without"),
                groups=groups, name=name, seed=seed,
            )  # fmt: skip
            share = _share(concept) if profile == "depth" else 1.0
            if not share:
                continue
            if eraser == "repair":
                concept = replace(concept, recordings=(concept.recordings[0], goals[site]))
            operator, note = eraser_map(
                concept, eraser, shrinkage=shrinkage, balanced=balanced, rank=rank, centre=centre
            )
            part = LowRankMap(operator.write, operator.read, operator.offset, 1 - share)
            note = f"{note}; site {ordered.index(site) + 1} of {len(ordered)}, {profile}"
            edit = edit_at(
                hooked, site, part, role=role.get(site) if isinstance(role, Mapping) else role,
                provenance=Provenance.of_concept(note),
            )  # fmt: skip
            # The stack takes the edits off again, the last one first, whatever happens below.
            stack.enter_context(edit.applied(hooked.model))
            edits.append(edit)
    return tuple(edits)


def _share(concept: Concept) -> float:
    """Return how much is to be removed where a held-out probe separates so well."""
    assert concept.evidence is not None  # it was found from two sets of images
    return max(0.0, 2 * (concept.evidence.auc - 0.5))


def _by_depth(hooked: HookedModel, sites: Sequence[str]) -> list[str]:
    """Return the sites in the order in which a forward pass meets them."""
    sites = several(sites, "sites", "a list of at least one name")
    if not sites:
        raise InputError("sites is empty; expected a list of at least one name")
    # By the names that they have there: a layer's path is another name for its site.
    names = [hooked.site(site).name for site in sites]
    if len(set(names)) < len(names):
        raise InputError(f"sites {list(sites)} name one twice; each gets one edit")
    order = list(hooked.sites)
    return sorted(names, key=order.index)


def _batches(images: Images, labels: Tensor | None) -> Iterable[Any]:
    """Return a loader that can be read once for every site."""
    if not isinstance(images, Tensor):
        if labels is not None:
            raise InputError("a loader brings its own labels: leave out labels=")
        of_kind(images, Iterable, "images", "a tensor of images, or a loader of them")
        # Only an iterator is its own iterator; what can be read again makes a new one each time.
        if iter(images) is images:
            raise InputError(
                "the images are read once for every site, and an iterator can be read once: give "
                "a list of batches, or a DataLoader"
            )
        return images
    classes = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    of_kind(classes, Tensor, "labels", "one class an image, as a tensor")
    if images.ndim < 2 or classes.shape != images.shape[:1]:
        raise InputError(
            f"images {list(images.shape)} and labels {list(classes.shape)} do not fit: expected "
            "(images, ...) and one class an image"
        )
    return list(zip(torch.split(images, BATCH), torch.split(classes, BATCH), strict=True))
