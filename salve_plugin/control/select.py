"""Choosing the latent and the strength for a class without a human looking.

Candidates come from the dictionary's profile; the strength of each is read off the exact critical
strengths; what it does is measured on the recorded head inputs. Two controls that need no
dictionary, zeroing the class's row and a random direction, show what the feature adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from salve_plugin.control.critical import AlphaCrit, alpha_crit, strengths_of
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import Change, change, evaluate_head, evaluate_heads
from salve_plugin.control.making import latent_gate
from salve_plugin.control.networks import Networks
from salve_plugin.control.operators import Gate, scaled_rows
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.rivals import with_rivals
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch

NUDGE = 1e-4
"""At the critical strength itself the last image is a tie: go this share beyond it."""

MARGINS = (2.0, 1.5, 1.25, 1.0)
"""Strengths tried, relative to the one at which the last recorded image of the class flips: images
that were not recorded need a little more."""

HAIR = 0.0025
"""Losses elsewhere are compared in steps of a quarter of a point: less is chance."""


@dataclass(frozen=True)
class Candidate:
    """One latent at one strength.

    Attributes:
        edit: what was tried.
        change: what it does on the recorded images.
        lead: by how much the class's logit still leads the best other one, for the image at the
            95th percentile of the class; the more negative, the likelier new images lose the label.
    """

    edit: Edit
    change: Change
    lead: float

    def met(self, max_accuracy: float) -> bool:
        """Say whether the class's accuracy is low enough."""
        return self.change.target_after <= max_accuracy

    def badness(self, max_accuracy: float) -> tuple[float, int, float]:
        """Order candidates: reach the target; then least loss, to `HAIR`; then the least lead."""
        missed = max(0.0, self.change.target_after - max_accuracy)
        return missed, int(max(0.0, -self.change.others_mean) / HAIR), self.lead

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "latent": self.edit.latent,
            "strength": self.edit.gate.strength,
            "change": self.change.to_json(),
            "lead": self.lead,
        }


@dataclass(frozen=True)
class Choice:
    """The edit that was chosen, and what was tried for it.

    Attributes:
        label: the class to suppress.
        edit: the chosen edit.
        change: what it does on the recorded images.
        met: whether the target accuracy was reached; if not, this is the lowest that was.
        tried: every candidate, in the order tried.
        unreachable: latents with which no strength flips a single image of the class.
    """

    label: int
    edit: Edit
    change: Change
    met: bool
    tried: tuple[Candidate, ...]
    unreachable: tuple[int, ...]

    @property
    def latent(self) -> int:
        """The chosen latent."""
        return self.edit.latent

    @property
    def strength(self) -> float:
        """The chosen strength."""
        return self.edit.gate.strength

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "label": self.label,
            "latent": self.latent,
            "strength": self.strength,
            "rows": None if self.edit.rows is None else list(self.edit.rows),
            "met": self.met,
            "change": self.change.to_json(),
            "tried": [candidate.to_json() for candidate in self.tried],
            "unreachable": list(self.unreachable),
        }


def choose(
    hooked: HookedModel,
    dictionary: Dictionary,
    features: Features,
    acts: Activations,
    label: int | str,
    *,
    rows: Sequence[int] | Literal["rivals"] | None = None,
    max_target_accuracy: float = 0.05,
    candidates: int = 5,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Choice:
    """Return the edit that suppresses a class with the least harm to the others.

    For each candidate latent (the best by selection score, and the paper's dominant one) the
    strengths tried run from the one by which just enough of the class's recorded images have lost
    their label to twice the one by which all have. Of what brings its accuracy to
    `max_target_accuracy`, the least mean loss elsewhere is taken (to `HAIR`; then the least
    lead). If nothing does, further latents are tried, twice as many each time; if none in the
    whole dictionary does, the lowest accuracy is taken and `met` is False.

    Args:
        hooked: the attached model.
        dictionary: of its head input.
        features: the dictionary's profile.
        acts: recorded head inputs of images with labels; not those of the final evaluation.
        label: the class, by index or name.
        rows: outputs to edit; None means all (the paper), `[label]` restricts the edit to the
            class, "rivals" adds the few rivals' rows that are needed where the class's own row is
            not enough (see `salve_plugin.control.rivals`; reads all recorded rows into memory).
        max_target_accuracy: accuracy of the class to reach, in [0, 1).
        candidates: how many latents of the ranking to try first.
        on_base_mismatch: "warn" goes on with evidence of another network, such as that which the
            model was fine-tuned from: what is claimed then need not hold for the model.

    Raises:
        BaseMismatchError: if the recording is not of the model as it is, or the dictionary or its
            profile neither of that nor of the model without the edits on it.
        InputError: if the class has no images, or no latent ever flips one.
    """
    if not 0 <= max_target_accuracy < 1:
        raise InputError(f"max_target_accuracy {max_target_accuracy} is not in [0, 1)")
    # The base of one edit is that of all: what can be told of the model is hashed once.
    base = latent_gate(hooked, dictionary, "suppress", 0, 0.0, None, None).base
    networks = Networks(hooked, on_base_mismatch, pristine=base.network)
    networks.check_present("the recording", acts.network_sha256)
    networks.check_either("the dictionary", dictionary.network)
    networks.check_either("the profile", features.network)
    index = features.class_index(label)
    order = features.ranked(index, dictionary.n_latents)
    order = list(dict.fromkeys([*order[:candidates], features.dominant(index), *order]))
    # Every candidate is judged on recorded head inputs, without the network: the head is linear.
    weight, bias = hooked.unembed(dictionary.site)
    recorded = (acts.tensor(), acts.labels()) if rows == "rivals" else None
    before = evaluate_head(weight, bias, acts)
    own = _of_class(acts, index)
    tried: list[Candidate] = []
    unreachable: list[int] = []
    # The ranking knows nothing of what an edit costs, so that its first latents may all fail; waves
    # that double keep the search to twice what was needed.
    done, wave = 0, candidates + 1
    while done < len(order) and not any(one.met(max_target_accuracy) for one in tried):
        edits: list[Edit] = []
        for latent in order[done : done + wave]:
            edit = latent_gate(hooked, dictionary, "suppress", latent, 0.0, _fixed(rows), base)
            if recorded is not None:
                edit = with_rivals(edit, weight, bias, recorded, index)
            crit = strengths_of(hooked, edit, acts, None, target="flip", classes=[index])
            strengths = _strengths(crit, index, max_target_accuracy)
            # A row set comes with the strength that it was found at: it competes, too.
            strengths += [edit.gate.strength] if edit.gate.strength else []
            edits += [edit.with_strength(strength) for strength in strengths]
            if not strengths:
                unreachable.append(latent)
        heads = [edited_weight(weight, edit) for edit in edits]
        after = evaluate_heads(heads, bias, acts) if edits else []
        tried += [
            Candidate(edit, change(before, one, index), _lead(head, bias, own, index))
            for edit, head, one in zip(edits, heads, after, strict=True)
        ]
        done, wave = done + wave, 2 * wave
    if not tried:
        raise InputError(
            f"no strength of any of {len(order)} latents flips an image of class {label!r}; use "
            "another dictionary, or edit other rows"
        )
    best = min(tried, key=lambda one: one.badness(max_target_accuracy))
    return Choice(
        label=index,
        edit=best.edit,
        change=best.change,
        met=best.met(max_target_accuracy),
        tried=tuple(tried),
        unreachable=tuple(unreachable),
    )


def _fixed(rows: Sequence[int] | Literal["rivals"] | None) -> Sequence[int] | None:
    """Return the rows as `suppress` takes them; those of rivals are found later."""
    if not isinstance(rows, str):
        return rows
    if rows != "rivals":
        raise InputError(f"rows {rows!r} is unknown; give indices, None for all, or 'rivals'")
    return None


def edited_weight(weight: Tensor, edit: Edit) -> Tensor:
    """Return the head's weight as `edit` would make it; the input is left unchanged."""
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


def _strengths(crit: AlphaCrit, label: int, max_accuracy: float) -> list[float]:
    """Return the strengths worth trying: from just enough images to well beyond all that flip."""
    # Some images never flip; twice the strength at which the last of the others does is as far as
    # it is worth going.
    finite = crit.values[crit.values.isfinite()]
    if not bool((finite > 0).any()):
        return []
    last = float(finite.max())
    wanted = {factor * last for factor in MARGINS}
    for part in (0.0, 0.5, 0.8):
        wanted.add(crit.strength_for(label, 1 - max_accuracy * (1 - part)))
    return [s * (1 + NUDGE) for s in sorted(wanted, reverse=True) if 0 < s < float("inf")]


def _of_class(acts: Activations, label: int) -> Tensor:
    return torch.cat([batch.x[batch.labels == label] for batch in acts.batches(4096)])


def _lead(weight: Tensor, bias: Tensor, x: Tensor, label: int) -> float:
    """Return how far the label leads its best competitor, for the image at the 95th percentile."""
    logits = torch.addmm(bias.float(), x.float(), weight.float().T)
    own = logits[:, label].clone()
    logits[:, label] = -torch.inf
    lead = (own - logits.amax(1)).sort().values
    return float(lead[int(0.95 * (len(lead) - 1))])
