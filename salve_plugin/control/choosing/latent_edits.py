"""Candidates that gate latents: the paper's edits, their strengths read off the critical ones.

Candidates come from the dictionary's profile, and the strengths of each from the exact critical
strengths of the recorded images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from salve_plugin.control.base import Base
from salve_plugin.control.choosing.candidate import Candidate
from salve_plugin.control.choosing.class_edits import judged, kept_classes
from salve_plugin.control.choosing.goals import EnhanceClass, SuppressClass
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.crit_summary import order_statistic
from salve_plugin.control.critical import AlphaCrit, alpha_crit, flip_strengths
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import leads
from salve_plugin.control.making import latent_gate
from salve_plugin.control.operators import Gate, scaled_rows
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.rivals import with_rivals
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.selection_score import selection_scores
from salve_plugin.hooks import HookedModel

NUDGE = 1e-4
"""At the critical strength itself the last image is a tie: go this share beyond it."""

MARGINS = (2.0, 1.5, 1.25, 1.0)
"""Strengths tried, relative to the one at which the last recorded image of the class flips: images
that were not recorded need a little more."""

MOST = 64
"""Latents tried at most: of those further down the ranking nothing speaks for any one."""

RAISES = (0.5, 0.8, 0.95, 1.0)
"""Shares of the class's images that an enhanced latent is to win."""


def suppressing_latents(
    head: JudgedHead, acts: Activations, goal: SuppressClass, label: int,
    dictionary: Dictionary, features: Features, base: Base,
) -> tuple[list[Candidate], list[int]]:  # fmt: skip
    """Return what was tried, and the latents with which no strength flips an image of the class.

    The first latents of both rankings (`_order`), the paper's dominant one among them, come first.
    They know nothing of what an edit costs, so that they may all fail: then twice as many are
    tried, until one reaches the goal within its bound or `MOST` have been tried.
    """
    order = _order(features, label, goal.tries)
    kept = kept_classes(head, label, goal.keep)
    tried: list[Candidate] = []
    unreachable: list[int] = []
    order = order[: max(MOST, 2 * goal.tries + 1)]
    done, wave = 0, 2 * goal.tries + 1
    while done < len(order) and not any(_meets(one, goal) for one in tried):
        for latent in order[done : done + wave]:
            fixed = None if isinstance(goal.rows, str) else goal.rows
            edit = latent_gate(head.hooked, dictionary, "suppress", latent, 0.0, fixed, base)
            if goal.rows == "rivals":
                recorded = head.x, head.labels
                edit = with_rivals(
                    edit, head.weight, head.bias, recorded, label, max_harm=goal.max_harm
                )
            crit = flip_strengths(head.hooked, edit, acts, label)
            strengths = _strengths(crit, label, goal.max_accuracy)
            # A row set comes with the strength that it was found at: it competes, too.
            strengths += [edit.gate.strength] if edit.gate.strength else []
            for strength in strengths:
                trial = edit.with_strength(strength)
                tried.append(judged(head, trial, _name(trial), label, kept, head.after(trial)))
            if not strengths:
                unreachable.append(latent)
        done, wave = done + wave, 2 * wave
    return tried, unreachable


def enhancing_latents(
    head: JudgedHead, goal: EnhanceClass, label: int, dictionary: Dictionary, features: Features,
    base: Base,
) -> Iterator[Candidate]:  # fmt: skip
    """Yield the class's first latents enhanced in its own row, as far as its images need it.

    In one row the logit is affine in the strength, so that each image has a closed form.
    """
    kept = kept_classes(head, label, goal.keep)
    own = head.labels == label
    # What the class's logit lacks to be the highest, image by image; the others stand still.
    missing = -leads(head.logits[own].double(), label)
    inputs = head.x[own].double()
    for latent in features.ranked(label, 5):
        edit = latent_gate(head.hooked, dictionary, "enhance", latent, 0.0, [label], base)
        # Enhancing never clamps, so that the first line holds at every strength.
        slope = inputs @ (head.weight[label].double() * edit.gate.reach.double())
        needed = torch.where(missing <= 0, 0.0, torch.where(slope > 0, missing / slope, torch.inf))
        ordered = needed.sort().values
        for share in RAISES:
            strength = float(ordered[order_statistic(len(ordered), share)])
            if 0 < strength < 1e3:
                trial = edit.with_strength(strength * (1 + NUDGE))
                logits = head.after(trial)
                yield judged(head, trial, _name(trial), label, kept, logits, raises=True)


def edited_weight(weight: Tensor, edit: Edit) -> Tensor:
    """Return the head's weight as a gate would make it; the input is left unchanged."""
    return scaled_rows(weight, edit.gate.factors, edit.rows)


def without_class(weight: Tensor, label: int) -> Tensor:
    """Return the weight with the class's row set to zero: the control that needs no feature."""
    result = weight.clone()
    result[label] = 0
    return result


def random_control(edit: Edit, seed: int = 0) -> Edit:
    """Return the edit along a random unit direction instead: the control for the feature.

    Its strength is zero: read one off `alpha_crit` as for a feature (`strength_for`).
    """
    # A generator of its own: the control is the same in every run and leaves the global one alone.
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(edit.site.width, generator=generator, dtype=torch.float64)
    direction = (direction / direction.norm()).float()
    gate = Gate(direction[None], 0.0, edit.gate.mode)
    return replace(edit, operator=gate, provenance=Provenance())


def strength_to_break(
    hooked: HookedModel, edit: Edit, acts: Activations, label: int, *, share: float = 0.95
) -> float:
    """Return the strength by which `share` of the class's images have lost their label.

    Just beyond the order statistic of the exact critical strengths, so that no image is left in a
    tie; infinite if that many never flip.
    """
    crit = alpha_crit(hooked, edit, acts, target="flip", classes=[label])
    return crit.strength_for(label, share) * (1 + NUDGE)


def _order(features: Features, label: int, tries: int) -> list[int]:
    """Return the latents by what speaks for them, the first `tries` of both rankings first.

    What tells a class best shifts most in units of its spread; what a gate takes from its logit is
    the shift itself. Neither says what the edit costs, so both are tried.
    """
    by_spread = features.ranked(label, len(features.spreads))
    plain = selection_scores(features.means, features.counts)[label]
    by_shift = plain.argsort(descending=True, stable=True).tolist()
    first = [*by_spread[:tries], features.dominant(label), *by_shift[:tries]]
    rest = [latent for pair in zip(by_spread, by_shift, strict=True) for latent in pair]
    return list(dict.fromkeys([*first, *rest]))


def _meets(candidate: Candidate, goal: SuppressClass) -> bool:
    return candidate.effect >= goal.enough and candidate.harm <= goal.max_harm


def _name(edit: Edit) -> str:
    rows: Sequence[int] | None = edit.rows
    where = "all rows" if rows is None else f"{len(rows)} row{'s' * (len(rows) > 1)}"
    return f"latent {edit.latent}, {where}"


def _strengths(crit: AlphaCrit, label: int, max_accuracy: float) -> list[float]:
    """Return the strengths worth trying: from just enough images to well beyond all that flip."""
    # Some images never flip; twice the strength at which the last of the others does is as far as
    # it is worth going.
    finite: Tensor = crit.values[crit.values.isfinite()]
    # Images that are wrong without any edit have the strength 0: nothing is to be done for them.
    if not bool((finite > 0).any()):
        return []
    last = float(finite.max())
    wanted = {factor * last for factor in MARGINS}
    for part in (0.0, 0.5, 0.8):
        wanted.add(crit.strength_for(label, 1 - max_accuracy * (1 - part)))
    return [s * (1 + NUDGE) for s in sorted(wanted, reverse=True) if 0 < s < float("inf")]
