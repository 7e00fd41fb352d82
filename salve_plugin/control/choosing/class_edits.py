"""Candidates for goals about a class: the mask, a bias, latents, and the controls beside them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from salve_plugin.control.base import Base
from salve_plugin.control.choosing.candidate import Candidate
from salve_plugin.control.choosing.goals import EnhanceClass, MoveDecision, SuppressClass
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.crit_summary import order_statistic
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import leads
from salve_plugin.control.making import edit_at
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.writers.mask import mask
from salve_plugin.control.writers.zeroing import zero_row
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError, UnsupportedModelError

SHARES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Shares of the images that a raised bias is to win."""


def judged(
    head: JudgedHead, edit: Edit, method: str, label: int, kept: Tensor, logits: Tensor,
    *, toward: int | None = None, is_control: bool = False, raises: bool = False,
) -> Candidate:  # fmt: skip
    """Return the candidate that an edit about one class is.

    Args:
        head: on whose recorded images it is judged.
        edit: what was tried.
        method: what it is.
        label: the class that the edit is about.
        kept: which classes are to be kept, (classes,).
        logits: with the edit.
        toward: the class that its images shall be labelled as, instead of any other.
        is_control: whether it needs no feature.
        raises: whether the class is to be labelled more often.
    """
    before, after = head.before, head.accuracies(logits)
    own = logits[head.labels == label]
    # Masked, as argmax returns the NaN of a class without images before any number.
    loss = torch.where(kept & before.isfinite(), before - after, -torch.inf)
    others = (before - after)[kept & before.isfinite()]
    target = float(after[label])
    effect = target if raises else 1 - target
    if toward is not None:
        effect = float((own.argmax(1) == toward).double().mean())
    # By how much the class leads on its images. The twentieth of them that is furthest from what is
    # wanted is left out, so that no single odd image speaks for all.
    lead = leads(own, label).sort().values
    figures = {
        "target accuracy before": float(before[label]),
        "target accuracy": target,
        "mean loss elsewhere": float(others.mean()) if len(others) else 0.0,
        "worst loss elsewhere": float(loss.max()) if len(others) else 0.0,
        "worst class": float(loss.argmax()),
    }
    harm = figures["worst loss elsewhere"]
    level = float(lead[int((0.05 if raises else 0.95) * (len(lead) - 1))])
    return Candidate(method, edit, effect, harm, figures, is_control, -level if raises else level)


def kept_classes(head: JudgedHead, label: int, keep: tuple[int, ...] | None) -> Tensor:
    """Return which classes count as others, (classes,).

    Raises:
        InputError: if one is no class of the head, has no images, or is the class itself.
    """
    others = torch.ones(head.n_classes, dtype=torch.bool)
    if keep is not None:
        head.check_kept(keep)
        if label in keep:
            raise InputError(
                f"keep {list(keep)} holds class {label}, which the edit is about: what becomes of "
                "it is no harm; leave it out"
            )
        others[:] = False
        others[list(keep)] = True
    others[label] = False
    return others


def suppressing(
    head: JudgedHead, acts: Activations, goal: SuppressClass, label: int
) -> Iterator[Candidate]:
    """Yield the edits that need no latent: the mask, and the zeroed row as the control."""
    kept = kept_classes(head, label, goal.keep)
    try:
        edit = mask(head.hooked, label, acts, on_base_mismatch="warn")
        yield judged(head, edit, "mask", label, kept, head.after(edit), is_control=True)
    except UnsupportedModelError:
        pass  # no bias and nothing that could stand for one
    edit = zero_row(head.hooked, label)
    yield judged(head, edit, "zeroed row", label, kept, head.after(edit), is_control=True)


def enhancing(
    head: JudgedHead, acts: Activations, goal: EnhanceClass, label: int, base: Base
) -> Iterator[Candidate]:
    """Yield the class's bias raised by what wins more and more of its images."""
    kept = kept_classes(head, label, goal.keep)
    try:
        constant = None if head.has_bias else _masked(head, acts, label)[1]
    except UnsupportedModelError:
        return  # no bias and nothing that could stand for one
    missing = (-leads(head.logits[head.labels == label].double(), label)).sort().values
    unit = _spread(head)
    for share in SHARES:
        raised = _just_beyond(float(missing[order_statistic(len(missing), share)]), unit)
        if raised <= 0:
            continue
        edit = _bias_edit(head, {label: raised}, base, constant)
        logits = head.after(edit)
        yield judged(
            head, edit, f"bias +{raised:.3g}", label, kept, logits, is_control=True, raises=True
        )


def moving(
    head: JudgedHead, acts: Activations, goal: MoveDecision, source: int, target: int, base: Base
) -> Iterator[Candidate]:
    r"""Yield edits after which images of one class are labelled as another.

    The first adds the source's row to the target's, $z_t' = z_t + s z_s$ with the source masked: it
    raises the target only where the source is seen. The control raises the target's bias instead.
    """
    kept = kept_classes(head, source, goal.keep)
    lowered, constant = _masked(head, acts, source)
    own = head.logits[head.labels == source].double()
    rivals = own.clone()
    rivals[:, source] = -torch.inf
    missing = rivals.amax(1) - own[:, target]
    centre = float(head.logits[head.labels != source][:, source].double().mean())
    # How much of the source's logit, above what it is elsewhere, the target needs.
    above = own[:, source] - centre
    ratios = torch.where(above > 0, missing / above, torch.inf).sort().values
    missing, unit = missing.sort().values, _spread(head)
    for share in SHARES:
        at = order_statistic(len(own), share)
        raised = _just_beyond(float(missing[at]), unit)
        if raised > 0:
            edit = _bias_edit(head, {source: lowered, target: raised}, base, constant)
            yield judged(
                head, edit, f"mask and bias +{raised:.3g}", source, kept, head.after(edit),
                toward=target, is_control=True,
            )  # fmt: skip
        factor = float(ratios[at]) * (1 + 1e-3) + 1e-6
        if not 0 < factor < 1e3:
            continue
        rows = sorted((source, target))
        # An edit's rows ascend, and the rows of A and d are in that order. A adds s wₛᵀx to the
        # target, and d adds s (bₛ - centre): together s times how far the source's logit lies above
        # its mean elsewhere.
        left = torch.zeros(2, 1, dtype=torch.float64)
        left[rows.index(target)] = factor
        shift = torch.zeros(2, dtype=torch.float64)
        shift[rows.index(source)] = lowered
        shift[rows.index(target)] = factor * (float(head.bias[source]) - centre)
        right = head.weight[source].double()[:, None]
        update = LowRankUpdate(left, right, shift)
        if constant is not None:
            both = torch.cat([left, shift[:, None]], 1), torch.cat([right, constant[:, None]], 1)
            update = LowRankUpdate(*both)
        edit = edit_at(
            head.hooked, head.site, update, rows=rows, base=base,
            provenance=Provenance(note=f"{factor:.3g} of class {source}'s row added to {target}'s"),
        )  # fmt: skip
        yield judged(
            head, edit, f"mask and {factor:.3g} of the row", source, kept, head.after(edit),
            toward=target,
        )  # fmt: skip


def _spread(head: JudgedHead) -> float:
    """Return how far an image's logits lie from their mean: the unit in which they are compared."""
    logits = head.logits.double()
    return float((logits - logits.mean(1, keepdim=True)).square().mean().sqrt())


def _just_beyond(needed: float, unit: float) -> float:
    """Return a bit more than what an image's logit needs, for at it the image is a tie."""
    return needed + 1e-3 * abs(needed) + 1e-4 * unit


def _masked(head: JudgedHead, acts: Activations, label: int) -> tuple[float, Tensor | None]:
    """Return what a mask moves a class's logit by, and what reads a constant off the inputs.

    The latter is None if the head has a bias to move.

    Raises:
        UnsupportedModelError: as `mask`, if it can do neither.
    """
    tensors = mask(head.hooked, label, acts, on_base_mismatch="warn").operator.tensors
    if head.has_bias:
        return float(tensors["shift"][0]), None
    # Without a bias the mask is one entry of A, and what it reads a constant with is its B.
    return float(tensors["left"][0, 0]), tensors["right"][:, 0].double()


def _bias_edit(
    head: JudgedHead, shifts: dict[int, float], base: Base, constant: Tensor | None
) -> Edit:
    """Return the edit that moves the biases of some classes, or what stands for them."""
    rows = sorted(shifts)
    shift = torch.tensor([shifts[row] for row in rows], dtype=torch.float64)
    if constant is None:
        # Of rank 0, so that the weight keeps its bits and no product is formed.
        nothing = torch.zeros(head.weight.shape[1], 0, dtype=torch.float64)
        update = LowRankUpdate(torch.zeros(len(rows), 0, dtype=torch.float64), nothing, shift)
    else:
        update = LowRankUpdate(shift[:, None], constant[:, None])
    note = ", ".join(f"bias of class {row} moved by {value:.4g}" for row, value in shifts.items())
    note += "" if constant is None else ", by a constant read off the features"
    return edit_at(
        head.hooked, head.site, update, rows=rows, base=base, provenance=Provenance(note=note)
    )
