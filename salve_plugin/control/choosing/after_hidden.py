"""What is left to do at the classifier once hidden layers are edited, and whether that is worth it.

A direction that the classifier reads carries the class as well as the concept, so what an eraser
there can take is bounded. Hidden layers hold the two further apart: edits there change the features
themselves, and the classifier's edit takes what is left.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from salve_plugin.control.choosing.candidate import Candidate, Choice, best_of
from salve_plugin.control.choosing.concept_edits import removing
from salve_plugin.control.choosing.goals import RemoveConcept, RemoveShortcut
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.choosing.hidden_sites import site_sets
from salve_plugin.control.choosing.proposed import Proposer
from salve_plugin.control.choosing.view import View
from salve_plugin.control.edit import Edit
from salve_plugin.errors import InputError


def after_hidden(
    head: JudgedHead, alone: Choice, hidden: Sequence[Edit], images: Sequence[Iterable[Any]],
    nothing: Edit,
) -> Choice:  # fmt: skip
    """Return the better of an edit of the classifier alone and one that comes after hidden edits.

    Both are measured against the model as it was given. The hidden edits are in place while this
    runs, and every bit is back when it returns or fails.

    Args:
        head: the classifier with the concept's images, as the model was given.
        alone: what was chosen for the classifier alone.
        hidden: edits of hidden layers.
        images: see `check_images`.
        nothing: the edit that changes nothing.

    Raises:
        InputError: if the images are not those of the recordings, or an edit is of the classifier.
    """
    goal = alone.goal
    assert isinstance(goal, RemoveConcept | RemoveShortcut)
    for edit in hidden:
        if edit.site.name == head.site.name:
            raise InputError(
                f"hidden holds an edit of '{edit.site.name}', which is the classifier's input; "
                "pass edits of earlier sites, such as salve.erase_through(...) makes"
            )
    with ExitStack() as stack:
        for edit in hidden:
            stack.enter_context(edit.applied(head.hooked.model))
        view = View.now(head, goal.concept, images)
        rest = removing(view, goal, nothing, reference=head)
    return _taken(alone, [_after(f"{len(hidden)} hidden edits", hidden, rest)])


def after_proposed(
    head: JudgedHead, alone: Choice, sites: Sequence[str], images: Sequence[Iterable[Any]],
    nothing: Edit,
) -> Choice:  # fmt: skip
    """Return the best of an edit of the classifier alone and those after edits of sets of sites.

    Measured as in `after_hidden`, whose errors are raised. Edits are judged on images that neither
    they nor what is done at the classifier were fitted to.

    Args:
        head: the classifier with the concept's images, as the model was given.
        alone: what was chosen for the classifier alone.
        sites: hidden ones, by depth.
        images: of each of the concept's recordings, in the recorded order.
        nothing: the edit that changes nothing.
    """
    goal = alone.goal
    assert isinstance(goal, RemoveConcept | RemoveShortcut)
    proposer = Proposer.of(head, goal.concept, images, sites)
    after = []
    for each in site_sets(sites, paired=goal.concept.is_paired):
        made = proposer.proposal(each)
        rest = removing(made.view, goal, nothing, reference=head, unseen=made.unseen)
        after.append(_after(made.name, made.edits, rest))
    return _taken(alone, after)


def _after(name: str, hidden: Sequence[Edit], rest: Choice) -> Choice:
    """Return a choice for the classifier with the hidden edits in whose place it was made."""

    def with_hidden(one: Candidate) -> Candidate:
        method = f"after {name}: {one.method}"
        return replace(one, method=method, hidden=tuple(hidden), is_control=False)

    tried = tuple(with_hidden(one) for one in rest.tried)
    return replace(rest, chosen=with_hidden(rest.chosen), tried=tried)


def _taken(alone: Choice, after: Sequence[Choice]) -> Choice:
    # The classifier alone comes first: what does no more than that is not worth more edits.
    among = [alone.chosen, *(rest.chosen for rest in after)]
    chosen, met = best_of(among, alone.enough, alone.goal.max_harm, by_loss=False)
    tried = tuple(one for rest in (alone, *after) for one in rest.tried)
    return replace(alone, chosen=chosen, met=met, tried=tried)
