"""Candidates for goals about a concept: erasers with and without the biases refitted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from salve_plugin.control.choosing.balanced_head import nuisance_head
from salve_plugin.control.choosing.candidate import Choice, best_of
from salve_plugin.control.choosing.concept_judge import ConceptJudge, HeadChange
from salve_plugin.control.choosing.goals import RemoveConcept, RemoveShortcut
from salve_plugin.control.choosing.groups import LEAST_IMAGES, Groups
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.choosing.view import View
from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.edit import Edit
from salve_plugin.control.erasers import directional_ablation, leace, repair, wieners
from salve_plugin.control.operators import LowRankMap
from salve_plugin.control.writers.head_fit import fitted_head, flip_shares
from salve_plugin.errors import InputError

FOLDS = 4
"""Erasers are judged on images that they were not fitted on: a quarter at a time."""

WEIGHTS = (3.0, 10.0, 30.0, 100.0)
"""How much the concept's effect weighs in the filters and discriminants that are tried."""

AGREEMENT = (0.0, 3.0, 10.0)
"""How much the agreement of pairs weighs in the heads that are fitted to them; 0 is the control."""

PULL, TOLERANCE = 1e-3, 1e-5
"""Towards the head as it is, as `refit_head` pulls; and of the solver: candidates are judged on
unseen images, so that the last digits of an optimum are of no use and take most of the time."""

RANKS = (1, 2, 4, 8)
"""Numbers of directions in which pairs are repaired."""


def removing(
    view: View, goal: RemoveConcept | RemoveShortcut, nothing: Edit,
    reference: JudgedHead | None = None, unseen: Sequence[View] = (),
) -> Choice:  # fmt: skip
    """Return the choice among erasers, biases and their controls; see `choose`.

    Args:
        view: what the classifier gets of the concept's images.
        goal: what is wanted.
        nothing: the edit that changes nothing.
        reference: the same images before anything was edited; the head itself by default.
        unseen: for each of `folds`, what the classifier gets with hidden edits that were fitted
            without the fold; needed if those of `view` were fitted on these images.

    Raises:
        InputError: if no class has images with and without the concept, or what is to be kept or
            changed is no class.
    """
    head, concept = view.head, view.concept
    head.check_kept(goal.keep)
    if goal.rows is not None:
        head.check_classes(goal.rows, "rows")
        if not goal.rows:
            raise InputError("rows is empty, so that nothing may change; None leaves the choice")
    groups = Groups.of(concept)
    sizes = groups.accuracies(groups.labels)
    if not any((label, not flag) in sizes for label, flag in sizes):
        raise InputError(
            f"no class has {LEAST_IMAGES} images with and {LEAST_IMAGES} without '{concept.name}', "
            "so that nothing tells it from the classes; add such images"
        )
    affected = groups.affected(head.n_classes)
    row_sets: list[tuple[int, ...] | None] = [goal.rows]
    if goal.rows is None and 0 < len(affected) < head.n_classes:
        row_sets.append(tuple(affected))
    parts, every = folds(concept), torch.ones(concept.n_images, dtype=torch.bool)
    views = unseen or [view] * len(parts)
    judge = ConceptJudge(head, goal, groups, reference or head)
    # Each holds its head's inputs in float64: of one view there is one.
    judges = [
        judge if each is view else ConceptJudge(each.head, goal, groups, reference or head)
        for each in views
    ]
    made = [
        dict(_changes(each, groups, affected, ~own)) for each, own in zip(views, parts, strict=True)
    ]
    final = dict(_changes(view, groups, affected, every))
    untouched = _gathered(parts, [each.head.logits.double() for each in views])
    tried = [
        judge.candidate(
            "no edit", nothing, untouched, is_control=True,
            recorded=head.logits.double() if unseen else None,
        )
    ]  # fmt: skip
    among = list(tried)
    for name, change in final.items():
        if not all(name in changes for changes in made):
            continue  # a class is missing where some of its images are unseen
        # Of biases alone, or a head refitted, there is one form.
        # With and without the biases refitted. Where there is no bias the first form falls away.
        forms = (name == "biases",) if change.is_whole else (True, False)[not head.has_bias :]
        for rows in row_sets[:1] if change.is_whole else row_sets:
            for refits in forms:
                # The biases too are fitted without the images that they are judged on.
                held_out = [
                    each.logits(each.update(changes[name], rows, ~own, refits), rows)
                    for each, changes, own in zip(judges, made, parts, strict=True)
                ]
                update = judge.update(change, rows, every, refits)
                where = "all rows" if rows is None else f"rows {list(rows)[:10]}"
                method = f"{name}, {where}" + ", biases refitted" * (refits and not change.is_whole)
                method += ", without its constant" * (not head.has_bias)
                candidate = judge.made(
                    method, update, rows, _gathered(parts, held_out), nothing,
                    is_control=change.is_control,
                )  # fmt: skip
                tried.append(candidate)
                if not change.is_null:
                    among.append(candidate)
    enough = goal.min_removed if isinstance(goal, RemoveConcept) else goal.min_gain
    chosen, met = best_of(among, enough, goal.max_harm)
    return Choice(goal, chosen, met, tuple(tried), enough)


def folds(concept: Concept) -> list[Bool[Tensor, " images"]]:
    """Return the parts of the images that are unseen at once: those that belong together are.

    Each part has as many images of every class, with and without the concept, as can be: dealt in
    the recorded order, images that come in turns would be unseen class by class.
    """
    groups = concept.groups
    kind = torch.zeros(int(groups.max()) + 1, dtype=torch.int64)
    # Groups of several kinds, such as pairs, are of the last of theirs.
    kind.scatter_reduce_(0, groups, 2 * concept.labels() + concept.flags().long(), "amax")
    mixed = torch.randperm(len(kind), generator=torch.Generator().manual_seed(0))
    part_of = torch.empty_like(kind)
    # On and on from kind to kind, so that kinds of few groups do not all come to the first part.
    part_of[mixed[kind[mixed].argsort(stable=True)]] = torch.arange(len(kind)) % FOLDS
    return [part_of[groups] == part for part in range(FOLDS)]


def _gathered(parts: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Return of each image the logits by what was fitted without it."""
    unseen = torch.empty_like(logits[0])
    for own, each in zip(parts, logits, strict=True):
        unseen[own] = each[own]
    return unseen


def _changes(
    view: View, groups: Groups, affected: Sequence[int], keep: Bool[Tensor, " images"]
) -> Iterator[tuple[str, HeadChange]]:
    """Yield the changes of the head that are tried, fitted on some of the images."""
    head, concept = view.head, view.concept
    weight = head.weight.double()
    effects = concept.effects(keep)
    moments, published = concept.moments(balanced=True, keep=keep), concept.moments(keep=keep)
    # Of those that do as well the first is taken: what is published, then from simple to elaborate.
    yield "leace as published", HeadChange.of_map(weight, leace(published), is_control=True)
    yield "leace, groups balanced", HeadChange.of_map(weight, leace(moments))
    for strength, eraser in zip(WEIGHTS, wieners(moments, effects, WEIGHTS), strict=True):
        yield f"wiener {strength:g}", HeadChange.of_map(weight, eraser)
    if 0 < len(affected) < head.n_classes:
        mine = keep & torch.isin(groups.labels, torch.tensor(affected))
        theirs = wieners(moments, concept.effects(mine), WEIGHTS)
        for strength, eraser in zip(WEIGHTS, theirs, strict=True):
            name = f"wiener {strength:g} of the affected classes' effects"
            yield name, HeadChange.of_map(weight, eraser)
    if groups.paired:
        pairs = concept.pair_moments(keep)
        for rank in RANKS:
            if rank <= len(pairs.mean):
                yield f"repair of rank {rank}", HeadChange.of_map(weight, repair(pairs, rank=rank))
    if head.has_bias:
        yield "biases", replace(HeadChange.nothing(head), is_control=True, is_whole=True)
    difference = directional_ablation(published, centre="origin")
    yield "difference of means", HeadChange.of_map(weight, difference, is_control=True)
    draw = torch.Generator().manual_seed(0)
    direction = torch.randn(len(moments.x_mean), 1, generator=draw, dtype=torch.float64)
    direction /= direction.norm()
    chance = LowRankMap(direction, direction, direction.T @ moments.x_mean)
    null = HeadChange.of_map(weight, chance, is_control=True)
    yield "random direction", replace(null, is_null=True)
    labels = groups.labels[keep]
    if len(set(labels.tolist())) < head.n_classes:
        return  # a discriminant has no row for a class without images
    x, weights = head.x[keep].double(), concept.group_weights(keep)[keep]
    if groups.paired:
        base, shares = head.logits[keep].double(), weights / weights.sum()
        # The images with the concept come first, and both of a pair are kept or left out together:
        # the first half of the labels is one for each pair.
        share = flip_shares(base, labels[: len(labels) // 2])
        for strength in AGREEMENT:
            fit = fitted_head(
                x, base, labels, shares, PULL, agreement=strength * share,
                has_bias=head.has_bias, tolerance=TOLERANCE,
            )  # fmt: skip
            shift = torch.zeros_like(fit.weight[:, 0]) if fit.bias is None else fit.bias
            change = HeadChange.by(fit.weight, shift)
            name = "head refitted near its own"
            name += f", agreement of pairs x {strength:g}" if strength else ""
            yield name, replace(change, is_control=not strength, is_whole=True)
    for strength in (0.0, *WEIGHTS):
        name = f"discriminant, effect x {strength:g}" if strength else "head refitted"
        change = HeadChange.to(head, *nuisance_head(x, labels, weights, effects, strength))
        refitted = not strength
        yield name, replace(change, is_control=refitted, is_whole=refitted)
