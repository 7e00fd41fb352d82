"""`choose`: the edit for a goal, judged on recorded images beside its controls."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from salve_plugin.control.base import Base
from salve_plugin.control.choosing.after_hidden import after_hidden, after_proposed
from salve_plugin.control.choosing.candidate import Candidate, Choice, best_of
from salve_plugin.control.choosing.class_edits import (
    enhancing,
    judged,
    kept_classes,
    moving,
    suppressing,
)
from salve_plugin.control.choosing.concept_edits import removing
from salve_plugin.control.choosing.goals import (
    EnhanceClass,
    Goal,
    MoveDecision,
    RemoveConcept,
    RemoveShortcut,
    SuppressClass,
)
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.choosing.hidden_sites import exact_sites, named_sites
from salve_plugin.control.choosing.latent_edits import enhancing_latents, suppressing_latents
from salve_plugin.control.choosing.view import View, check_images
from salve_plugin.control.edit import Edit
from salve_plugin.control.making import latent_gate, unchanged
from salve_plugin.control.networks import Networks
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features, profile
from salve_plugin.discover.reads import check_dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.integers import whole
from salve_plugin.kinds import of_kind
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch


@without_autocast()
def choose(
    hooked: HookedModel,
    goal: Goal,
    acts: Activations | None = None,
    *,
    dictionary: Dictionary | None = None,
    features: Features | None = None,
    hidden: Sequence[Edit] = (),
    images: Sequence[Iterable[Any]] = (),
    sites: Sequence[str] | Literal["exact"] | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Choice:
    """Return the edit that reaches a goal at the least cost, with all that was tried for it.

    Every candidate is judged by recounting the decisions on recorded images, the controls that need
    no feature among them. One that costs more than the goal's `max_harm` is never returned: if none
    of the others reaches the goal, the one that comes nearest is, `met` is False, and the verdict
    says what reaching it would cost.

    | goal | what is tried |
    |---|---|
    | `SuppressClass` | the mask (its bias lowered beyond reach), the zeroed row, gated latents |
    | `EnhanceClass` | its bias raised, latents enhanced in its row |
    | `MoveDecision` | the source's row added to the target's, the target's bias raised |
    | `RemoveConcept`, `RemoveShortcut` | erasers for all and for the affected classes |

    For a class the mask is the recommended answer: it is the ideal, the old probabilities
    renormalized without the class. `SuppressClass(by="latents")` asks for the paper's edit for the
    features' sake; the mask is then measured beside it and the verdict says if it does as well.

    Args:
        hooked: the attached model.
        goal: what is wanted.
        acts: recorded head inputs of images with the model's labels; not those of the final
            evaluation. Goals about a concept use the recordings that it was found in.
        dictionary: of the head's input: its latents compete, too.
        features: the dictionary's profile on `acts`, if it is there already.
        hidden: for goals about a concept: edits of hidden layers that are on offer, such as
            `erase_through` makes. What is left to do at the classifier is chosen with them in
            place, and they are taken only if that does more than the classifier's edit alone:
            `Choice.edits` are all that were chosen. What they were fitted on is not known here:
            fit them on other images.
        images: for goals about a concept: the images of its recordings, in the recorded order, as
            many loaders of (images, labels) as it has recordings. Without `hidden` they have edits
            of hidden layers fitted, each judged on images that it was not fitted on, and edits of
            several sites that are judged together. That takes up to 96 passes over the images.
        sites: with `images` and without `hidden`: names of the hidden sites that may be edited.
            None or "exact" finds up to eight where weights take an eraser over exactly.
        on_base_mismatch: "warn" goes on with evidence of another network, such as that which the
            model was fine-tuned from: what is claimed then need not hold for the model.

    Raises:
        BaseMismatchError: if the recording is not of the model as it is, or the dictionary or its
            profile neither of that nor of the model without the edits on it.
        InputError: if the recording's labels are not the classifier's, the class has no images, or
            what the goal needs is missing.
        UnsupportedModelError: if no hidden site is exact, or not one that was named.
    """
    check_attached(hooked)
    lists = isinstance(images, Sequence) and isinstance(hidden, Sequence)
    if not lists or not all(isinstance(edit, Edit) for edit in hidden):
        raise InputError(
            f"images is a {type(images).__name__}, hidden {hidden!r:.200}: expected a list of "
            "loaders, images=[loader, ...], and a list of edits"
        )
    if not isinstance(goal, Goal):
        raise InputError(
            f"goal {goal!r:.200} is none; give a SuppressClass, EnhanceClass, MoveDecision, "
            "RemoveConcept or RemoveShortcut"
        )
    if isinstance(goal, RemoveConcept | RemoveShortcut):
        recordings = goal.concept.recordings
    else:
        recordings = _one(acts)
    nothing = unchanged(hooked, recordings[0].site)
    # Making the edit that changes nothing has hashed the model without edits already.
    networks = Networks(hooked, on_base_mismatch, pristine=nothing.base.network)
    for recording in recordings:
        networks.check_present("the recording", recording.network_sha256)
    head = JudgedHead.of(hooked, recordings)
    if isinstance(goal, RemoveConcept | RemoveShortcut):
        names = _hidden_sites(head, hidden, images, sites)
        if hidden or names:  # before anything that takes long
            check_images(head, goal.concept, images)
        alone = removing(View(head, goal.concept), goal, nothing)
        if hidden:
            return after_hidden(head, alone, hidden, images, nothing)
        return after_proposed(head, alone, names, images, nothing) if names else alone
    if hidden or images or sites is not None:
        raise InputError(
            f"hidden edits are on offer for goals about a concept, and {type(goal).__name__} is "
            "about a class, which the classifier decides; leave hidden, images and sites out"
        )
    (recording,) = recordings
    if dictionary is not None:
        check_dictionary(dictionary)
        networks.check_either("the dictionary", dictionary.network)
        features = _profile(dictionary, recording, features, networks, on_base_mismatch)
    label = _label(goal.source if isinstance(goal, MoveDecision) else goal.label, head, recording)
    if isinstance(goal, MoveDecision):
        target = _label(goal.target, head, recording)
        if target == label:
            raise InputError(f"source and target are both class {label}; name two")
        kept = kept_classes(head, label, goal.keep)
        start = judged(head, nothing, "no edit", label, kept, head.logits, toward=target)
        moved = moving(head, recording, goal, label, target, nothing.base)
        return _choice(goal, [start, *moved], goal.min_share)
    kept = kept_classes(head, label, goal.keep)
    raises = isinstance(goal, EnhanceClass)
    start = judged(head, nothing, "no edit", label, kept, head.logits, raises=raises)
    if isinstance(goal, EnhanceClass):
        return _enhanced(head, recording, goal, label, nothing.base, start, dictionary, features)
    return _suppressed(head, recording, goal, label, nothing.base, start, dictionary, features)


def _hidden_sites(
    head: JudgedHead, hidden: Sequence[Edit], images: Sequence[Iterable[Any]],
    sites: Sequence[str] | Literal["exact"] | None,
) -> list[str]:  # fmt: skip
    """Return the hidden sites where edits are to be made; none if that is not asked for."""
    if sites is not None and (hidden or not images):
        raise InputError(
            f"sites={sites!r:.200} has hidden edits made, which needs the concept's images and "
            "takes the place of edits on offer: pass images=[loader, ...], and no hidden="
        )
    if hidden or not images:
        return []
    if sites is not None and sites != "exact":
        return named_sites(head.hooked, sites, head.site)
    found = exact_sites(head.hooked, head.site)
    if not found:
        raise UnsupportedModelError(
            "no hidden site of this model is known where weights take an eraser over exactly; "
            "leave out images to choose an edit of the classifier, or name sites=[...]"
        )
    return found


def _suppressed(
    head: JudgedHead, acts: Activations, goal: SuppressClass, label: int, base: Base,
    start: Candidate, dictionary: Dictionary | None, features: Features | None,
) -> Choice:  # fmt: skip
    controls = list(suppressing(head, acts, goal, label))
    gated: list[Candidate] = []
    unreachable: list[int] = []
    if dictionary is not None and features is not None:
        gated, unreachable = suppressing_latents(
            head, acts, goal, label, dictionary, features, base
        )
    elif goal.by == "latents":
        raise InputError("SuppressClass(by='latents') gates latents: pass dictionary=")
    enough = goal.enough
    if goal.by == "latents" and not gated and start.effect < enough:
        raise InputError(
            f"no strength of any of {len(unreachable)} latents flips an image of class {label}; "
            "use another dictionary, or edit other rows"
        )
    if goal.by == "latents" and dictionary is not None and features is not None:
        # The fallback too is of the form that was asked for: a gate, whose strength 0 changes
        # nothing.
        first = features.ranked(label, 1)[0]
        still = latent_gate(head.hooked, dictionary, "suppress", first, 0.0, [label], base)
        start = replace(start, edit=still)
    # "No edit" is there so that something within the bound always is; it is taken for want of
    # anything better.
    among = gated if goal.by == "latents" else [*controls, *gated]
    chosen, met = best_of([*among, start], enough, goal.max_harm)
    return Choice(goal, chosen, met, (*controls, *gated), enough, tuple(unreachable))


def _enhanced(
    head: JudgedHead, acts: Activations, goal: EnhanceClass, label: int, base: Base,
    start: Candidate, dictionary: Dictionary | None, features: Features | None,
) -> Choice:  # fmt: skip
    raised = list(enhancing(head, acts, goal, label, base))
    gated: list[Candidate] = []
    if dictionary is not None and features is not None:
        gated = list(enhancing_latents(head, goal, label, dictionary, features, base))
    elif goal.by == "latents":
        raise InputError("EnhanceClass(by='latents') enhances latents: pass dictionary=")
    among = gated if goal.by == "latents" else [*raised, *gated]
    # "No edit" comes first, and of equals the first is taken: raising nothing is preferred.
    chosen, met = best_of([start, *among], goal.min_accuracy, goal.max_harm)
    return Choice(goal, chosen, met, (*raised, *gated), goal.min_accuracy)


def _choice(goal: Goal, tried: list[Candidate], enough: float) -> Choice:
    chosen, met = best_of(tried, enough, goal.max_harm)
    return Choice(goal, chosen, met, tuple(tried), enough)


def _one(acts: Activations | None) -> tuple[Activations, ...]:
    if not isinstance(acts, Activations):
        raise InputError(
            f"acts is {type(acts).__name__}; a goal about a class is judged on a recording of the "
            "head's input: salve.record(hooked, loader)"
        )
    return (acts,)


def _profile(
    dictionary: Dictionary, acts: Activations, features: Features | None, networks: Networks,
    on_base_mismatch: OnBaseMismatch,
) -> Features:  # fmt: skip
    if features is None:
        return profile(dictionary, acts, on_base_mismatch=on_base_mismatch)
    of_kind(features, Features, "features", "what salve.profile returns")
    networks.check_either("the profile", features.network)
    if features.of_attribute:
        raise InputError(
            "the profile is by an attribute, whose values are no classes of the model; pass "
            "profile(dictionary, acts), or leave features out"
        )
    return features


def _label(label: int | str, head: JudgedHead, acts: Activations) -> int:
    """Return a class of the head that has images.

    Raises:
        InputError: if there is none such.
    """
    names = acts.classes
    if isinstance(label, str):
        if names is None or label not in names:
            known = f"choose one of {list(names)[:50]}" if names else "give an index"
            raise InputError(f"no class named {label!r}; {known}")
        label = names.index(label)
    index = whole(label, "label")
    if not 0 <= index < head.n_classes:
        raise InputError(f"no class {index}; the head has 0 to {head.n_classes - 1}")
    if not bool((head.labels == index).any()):
        raise InputError(
            f"class {index} has no example in the recording, so nothing is known of what an edit "
            "does to it; record images of it"
        )
    return index
