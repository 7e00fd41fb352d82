"""Erasing a concept: the permanent edit of its site that a closed-form eraser gives."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from salve_plugin.control.base import Base
from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.edit import Edit
from salve_plugin.control.erasers import (
    Centre,
    directional_ablation,
    fold_latents,
    fold_posterior,
    inlp,
    leace,
    repair,
    safree,
    splince,
    wiener,
)
from salve_plugin.control.making import edit_at
from salve_plugin.control.networks import Networks
from salve_plugin.control.operators import LowRankMap, Role
from salve_plugin.control.provenance import Provenance
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch

Eraser = Literal[
    "leace", "splince", "repair", "wiener", "mean_ablation", "directional_ablation", "inlp",
    "safree", "fold", "posterior",
]  # fmt: skip
"""Closed-form ways to take a concept out of a site; see `eraser_map`."""

ABOUT_THE_MEAN: tuple[Eraser, ...] = ("wiener", "safree", "fold", "posterior")
"""Those without a form that needs no offset."""


def eraser_map(
    concept: Concept,
    eraser: Eraser = "leace",
    *,
    shrinkage: float | None = None,
    balanced: bool = True,
    rank: int = 1,
    centre: Centre = "mean",
) -> tuple[LowRankMap, str]:
    """Return the low-rank map that takes a concept out of its site, and how it was obtained.

    | eraser | what it does |
    |---|---|
    | `leace` | the least change after which no linear probe finds the concept |
    | `splince` | the least that also keeps the covariance with the classes |
    | `mean_ablation` | the difference of means is projected out, about the mean |
    | `directional_ablation` | the same about zero: logits shift |
    | `inlp` | what one least-squares probe after another finds is projected out |
    | `safree` | the span of the concept's atoms is projected out, within the data's span |
    | `fold` | the concept's latents are ablated, or their best affine stand-in |
    | `repair` | marked pictures go back to what they were unmarked, clean ones stay; needs pairs |
    | `wiener` | several directions, each as far as what the concept adds outweighs all else |
    | `posterior` | each latent is attenuated by how probably it is the concept's (after APP) |

    Args:
        concept: what to take out.
        eraser: how.
        shrinkage: of the covariance of the activations, from 0 (none, as published) to 1; None
            estimates how much is needed.
        balanced: every group of class and concept counts alike, so that a concept that goes with a
            class is told from the class; else the images count as they are, as published.
        rank: number of directions of `repair`; the others find out themselves.
        centre: "origin" makes a map without an offset, for layers that take none, such as padded
            convolutions. Where `leace` and `splince` do so they leave the mean where it is; `inlp`
            and the difference of means shift it.

    Raises:
        InputError: if the eraser is unknown, needs a dictionary or labels that the concept does not
            have, finds nothing to take out, or has no form without an offset.
    """
    if centre not in get_args(Centre):
        raise InputError(f"centre {centre!r} is unknown; choose one of {list(get_args(Centre))}")
    if eraser not in get_args(Eraser):
        raise InputError(f"eraser {eraser!r} is unknown; choose one of {list(get_args(Eraser))}")
    if centre == "origin" and eraser in ABOUT_THE_MEAN:
        raise InputError(
            f"'{eraser}' is a map about the mean and has no form without an offset; for layers "
            "that take none choose 'leace', or 'repair' where there are pairs"
        )
    if eraser in ("fold", "posterior", "safree"):
        return _of_latents(concept, eraser, shrinkage)
    about = " about zero" if centre == "origin" else ""
    if eraser == "repair":
        # Of pairs: the class is the same on both sides, so that there is nothing to balance.
        note = f"repair of rank {rank}{about} of {concept.note}"
        return repair(concept.pair_moments(centre=centre), rank=rank), note
    note = f"{eraser}{about}{', groups balanced' if balanced else ''} of {concept.note}"
    moments = concept.moments(balanced=balanced)
    if eraser == "leace":
        operator_map = leace(moments, shrinkage=shrinkage, centre=centre)
    elif eraser == "splince":
        labels = concept.class_moments()
        operator_map = splince(moments, labels, shrinkage=shrinkage, centre=centre)
    elif eraser == "wiener":
        operator_map = wiener(moments, concept.effects(), shrinkage=shrinkage)
    elif eraser == "inlp":
        operator_map = inlp(moments, shrinkage=shrinkage, centre=centre)
    else:
        if eraser == "directional_ablation":
            centre = "origin"
        operator_map = directional_ablation(moments, centre=centre)
    return operator_map, note


def erase(
    hooked: HookedModel,
    concept: Concept,
    eraser: Eraser = "leace",
    *,
    rows: Sequence[int] | None = None,
    role: Role | None = None,
    scale: float = 0.0,
    shrinkage: float | None = None,
    balanced: bool = True,
    rank: int = 1,
    centre: Centre = "mean",
    base: Base | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Edit:
    """Return the permanent edit that takes a concept out of its site, for all or for some classes.

    Nothing is changed yet: `edit.apply_(model)` does that. At a hidden site the edit is measured
    against a hook before it is returned, as `edit_at` does.

    Args:
        hooked: the attached model.
        concept: found in recordings of this model.
        eraser: how, see `eraser_map`; LEACE by default.
        rows: outputs of the readers, such as classes at the head, that shall no longer see the
            concept; None means all.
        role: "reader" or "writer", as for `edit_at`.
        scale: what remains of the concept: 0 removes it, 1 changes nothing.
        shrinkage: as for `eraser_map`.
        balanced: as for `eraser_map`.
        rank: as for `eraser_map`.
        centre: as for `eraser_map`.
        base: as for `edit_at`.
        on_base_mismatch: "warn" takes a concept of another network too.

    Raises:
        BaseMismatchError: if the concept was not found in this model as it is.
        InputError: as for `eraser_map` and `edit_at`.
        UnsupportedModelError: as for `edit_at`.
    """
    if not isinstance(concept, Concept):
        raise InputError(f"a concept was expected, got {type(concept).__name__}; see find_concept")
    networks = Networks(hooked, on_base_mismatch)
    networks.check_present(f"the concept '{concept.name}'", concept.network)
    operator, note = eraser_map(
        concept, eraser, shrinkage=shrinkage, balanced=balanced, rank=rank, centre=centre
    )
    # Erasers give maps that remove all; how much of it remains is a number of the map.
    operator = replace(operator, scale=scale)
    return edit_at(
        hooked, concept.site, operator, rows=rows, role=role, base=base,
        provenance=Provenance.of_concept(note),
    )  # fmt: skip


def _of_latents(
    concept: Concept, eraser: Eraser, shrinkage: float | None
) -> tuple[LowRankMap, str]:
    """Return the map of an eraser that works on the latents a concept is made of."""
    if concept.dictionary is None or not concept.latents:
        raise InputError(
            f"'{eraser}' takes out latents, and '{concept.name}' is a concept of {concept.source}: "
            "find it with dictionary=, or choose another eraser"
        )
    latents = [latent.index for latent in concept.latents]
    if eraser == "safree":
        atoms = concept.dictionary.atoms.cpu().double()[latents].T
        return safree(atoms, concept.moments()), f"safree of {concept.note}"
    if eraser == "fold":
        activations = (batch.x for batch, _ in concept.rows())
        folded = fold_latents(concept.dictionary, latents, activations, shrinkage=shrinkage)
    else:
        has = concept.has
        if has is None:
            raise InputError(
                f"'posterior' compares images with and without '{concept.name}', and nobody has "
                "said which have it: give `has` where the concept is found"
            )
        pieces = ((batch.x, has[batch.images]) for batch, _ in concept.rows())
        folded = fold_posterior(concept.dictionary, latents, pieces, shrinkage=shrinkage)
    least = float(folded.foldability.min())
    return folded.map, f"{eraser} (R² at least {least:.2f}) of {concept.note}"
