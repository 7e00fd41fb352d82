"""Closed-form ways to take a planted attribute out of a linear head, all from the same rows.

Each is a function of `Rows` and the head and returns the head (W, b) that the edit leaves. Group
weights give each (class, attribute) group the same total weight, in the mean, the covariance and
the covariance with the attribute: as recorded, the attribute goes with a class, and what removes
the one removes the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.control.choosing.balanced_head import nuisance_head
from salve_plugin.control.concepts.sparse_probe import forward_selection
from salve_plugin.control.erasers import (
    PairMoments,
    directional_ablation,
    inlp,
    leace,
    repair,
    splince,
    wieners,
)
from salve_plugin.control.erasers.joint_moments import JointMoments
from salve_plugin.control.operators import LowRankMap
from salve_plugin.control.writers.head_fit import fitted_head, flip_shares

Head = tuple[Tensor, Tensor]
Codes = Callable[[Tensor], Tensor]
CLASSES = 10
SHRINKAGE = 0.02
"""Of covariances that this file inverts itself; with 6000 rows of 100 to 200 features, from 0 to .3
makes no difference beyond noise."""


@dataclass(frozen=True)
class Rows:
    """What every method may learn from, all float64 but the labels.

    Attributes:
        x: recorded inputs of the head, (n, width).
        labels: (n,).
        has: whether the attribute is there, 0 or 1 (n,).
        pair: the two classes that the attribute goes with.
        unmarked: inputs of pictures of all classes without the attribute, (m, width).
        differences: of the same pictures with it, minus those, (m, width).
        difference_labels: their classes, (m,).
    """

    x: Tensor
    labels: Tensor
    has: Tensor
    pair: tuple[int, int]
    unmarked: Tensor
    differences: Tensor
    difference_labels: Tensor

    @property
    def weights(self) -> Tensor:
        """Weights that sum to 1, the same for each (class, attribute) group, (n,)."""
        group = 2 * self.labels + self.has
        count = torch.bincount(group, minlength=2 * CLASSES)
        return 1 / (count[group] * (count > 0).sum()).double()

    def of_pair(self) -> "Rows":
        """Return the rows of the two classes alone."""
        mine = (self.labels == self.pair[0]) | (self.labels == self.pair[1])
        return replace(self, x=self.x[mine], labels=self.labels[mine], has=self.has[mine])

    def moments(self, values: Tensor | None = None, *, balanced: bool = False) -> JointMoments:
        """Return the joint moments with some values (n, k), by default the attribute."""
        values = self.has[:, None].double() if values is None else values
        if not balanced:
            return JointMoments.of([(self.x, values)])
        return JointMoments.of([(self.x, values, self.weights)])

    def group_means(self) -> tuple[Tensor, Tensor]:
        """Return the means without and with the attribute, (classes, width) each."""
        means = [
            torch.stack(
                [self.x[(self.labels == c) & (self.has == has)].mean(0) for c in range(CLASSES)]
            )
            for has in (0, 1)
        ]
        return means[0], means[1]


def folded(head: Head, change: LowRankMap) -> Head:
    """Return the head that reads the mapped activation."""
    weight, bias = head
    left = (change.scale - 1) * (weight @ change.write.double())
    return weight + left @ change.read.double().T, bias - left @ change.offset.double()


def on_rows(head: Head, edited: Head, rows: tuple[int, ...]) -> Head:
    """Return the head with some classes' rows and biases edited only."""
    weight, bias = head[0].clone(), head[1].clone()
    weight[list(rows)], bias[list(rows)] = edited[0][list(rows)], edited[1][list(rows)]
    return weight, bias


def fitted(
    head: Head, x: Tensor, labels: Tensor, weights: Tensor, *, ridge: float | None, steps: int = 30
) -> Head:
    """Refit the bias, or with a ridge towards the head's own weight the whole head; convex."""
    weight, bias = head[0].clone(), head[1].clone().requires_grad_()
    free = [bias] if ridge is None else [bias, weight.requires_grad_()]
    optimizer = torch.optim.LBFGS(free, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        each = functional.cross_entropy(x @ weight.T + bias, labels, reduction="none")
        loss = (weights * each).sum()
        if ridge is not None:
            loss = loss + ridge * (weight - head[0]).square().sum()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return weight.detach(), bias.detach()


def with_bias(rows: Rows, head: Head) -> Head:
    """Return the head with its bias refitted under group weights."""
    return fitted(head, rows.x, rows.labels, rows.weights, ridge=None)


def effects(rows: Rows, which: str) -> Tensor:
    """Return columns e so that Σeeᵀ is the covariance that the attribute adds, (width, columns).

    "groups": from the differences of the classes' group means, no pairs needed; "pairs": from those
    of pairs of all classes; "pair": of the two classes; "both": half of each.
    """
    if which == "groups":
        without, there = rows.group_means()
        parts = [there - without]
    else:
        mine = (rows.difference_labels == rows.pair[0]) | (rows.difference_labels == rows.pair[1])
        every, own = rows.differences, rows.differences[mine]
        parts = {"pairs": [every], "pair": [own], "both": [every, own]}[which]
    return torch.cat([part / (2 * (len(part) * len(parts)) ** 0.5) for part in parts]).T


def top_directions(rows: Rows, rank: int) -> LowRankMap:
    """Return LEACE's map of the attribute in each class, of the strongest directions only."""
    without, there = rows.group_means()
    moments = rows.moments(balanced=True)
    spreads, axes = torch.linalg.eigh(moments.covariance(SHRINKAGE))
    colour, whiten = (axes * spreads.sqrt()) @ axes.T, (axes / spreads.sqrt()) @ axes.T
    basis = torch.linalg.svd(whiten @ (there - without).T, full_matrices=False)[0][:, :rank]
    read = whiten @ basis
    return LowRankMap(colour @ basis, read, read.T @ moments.x_mean)


def sparse_score(rows: Rows, encode: Codes, *, balanced: bool, count: int = 16) -> Tensor:
    """Return the score (n, 1) of a probe on a few codes."""
    codes = encode(rows.x)
    moments = replace(rows, x=codes).moments(balanced=balanced)
    latents, weights = forward_selection(moments, count)
    return codes[:, latents] @ weights[:, None]


def trivial(rows: Rows, head: Head, seed: int) -> Iterator[tuple[str, Head]]:
    """Yield the controls that need no concept."""
    weight, bias = head
    moments = rows.moments()
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(weight.shape[1], 1, generator=generator, dtype=torch.float64)
    random /= random.norm()
    yield "random direction", folded(head, LowRankMap(random, random, random.T @ moments.x_mean))
    shift = rows.group_means()[1].mean(0) - rows.group_means()[0].mean(0)
    top = (shift.abs() / moments.xx.diagonal().sqrt().clamp(min=1e-9)).topk(16).indices
    zeroed = weight.clone()
    zeroed[:, top] = 0
    yield "16 top neurons zeroed", (zeroed, bias)
    yield "bias refitted alone", with_bias(rows, head)


def published(rows: Rows, head: Head, encoders: dict[str, Codes]) -> Iterator[tuple[str, Head]]:
    """Yield erasers as others describe them, on rows as recorded."""
    moments = rows.moments()
    yield (
        "difference of means, no offset",
        folded(head, directional_ablation(moments, centre="origin")),
    )
    yield "difference of means", folded(head, directional_ablation(moments))
    yield "INLP", folded(head, inlp(moments))
    one_hot = functional.one_hot(rows.labels, CLASSES).double()
    yield "SPLINCE", folded(head, splince(moments, rows.moments(one_hot)))
    yield "LEACE", folded(head, leace(moments))
    yield "LEACE (concept-erasure)", peer_leace(rows, head)
    yield "LEACE, rows of the two classes", folded(head, leace(rows.of_pair().moments()))
    for name, encode in encoders.items():
        score = sparse_score(rows, encode, balanced=False)
        yield f"probe on 16 {name} codes, LEACE", folded(head, leace(rows.moments(score)))


def peer_leace(rows: Rows, head: Head) -> Head:
    """Return LEACE by the package of its authors, with its defaults."""
    from concept_erasure import LeaceEraser

    eraser = LeaceEraser.fit(rows.x, rows.has.double())
    return folded(
        head, LowRankMap(eraser.proj_left, eraser.proj_right.T, eraser.proj_right @ eraser.bias)
    )


def balanced(rows: Rows, head: Head, encoders: dict[str, Codes]) -> Iterator[tuple[str, Head]]:
    """Yield erasers under group weights."""
    change = leace(rows.moments(balanced=True))
    yield "LEACE", folded(head, change)
    yield "LEACE, two classes' rows of W", on_rows(head, folded(head, change), rows.pair)
    yield (
        "LEACE, rows of the two classes",
        folded(head, leace(rows.of_pair().moments(balanced=True))),
    )
    yield "difference of means", folded(head, directional_ablation(rows.moments(balanced=True)))
    one_hot = functional.one_hot(rows.labels, CLASSES).double()
    labels = rows.moments(one_hot, balanced=True)
    yield "SPLINCE", folded(head, splince(rows.moments(balanced=True), labels))
    for rank in (2, 8):
        yield f"LEACE by class, rank {rank}", folded(head, top_directions(rows, rank))
    moments, columns = rows.moments(balanced=True), effects(rows, "groups")
    for strength in (10.0, 100.0):
        (change,) = wieners(moments, columns, [strength], shrinkage=SHRINKAGE)
        yield f"filter {strength:g}", folded(head, change)
    yield (
        "discriminant, effect x 10",
        nuisance_head(rows.x, rows.labels, rows.weights, columns, 10.0),
    )
    for name, encode in encoders.items():
        score = sparse_score(rows, encode, balanced=True)
        yield (
            f"probe on 16 {name} codes, LEACE",
            folded(head, leace(rows.moments(score, balanced=True))),
        )


def paired(rows: Rows, head: Head) -> Iterator[tuple[str, Head]]:
    """Yield what others would do with the pairs: both pictures of each count."""
    both = replace(
        rows,
        x=torch.cat([rows.unmarked, rows.unmarked + rows.differences]),
        labels=rows.difference_labels.repeat(2),
        has=torch.arange(2).repeat_interleave(len(rows.differences)),
    )
    yield "LEACE", with_bias(both, folded(head, leace(both.moments())))
    moments = PairMoments.of([(rows.unmarked + rows.differences, rows.unmarked)])
    for rank in (2, 8):
        yield f"repair of rank {rank}", with_bias(both, folded(head, repair(moments, rank=rank)))
    yield (
        "head refitted, ridge to its own",
        fitted(head, both.x, both.labels, both.weights, ridge=3e-3),
    )
    base = both.x @ head[0].T + head[1]
    agreement = 10 * flip_shares(base, rows.difference_labels)
    fit = fitted_head(both.x, base, both.labels, both.weights, 1e-3, agreement=agreement, steps=300)
    assert fit.bias is not None
    yield "refit_head, agreement 10", (head[0] + fit.weight, head[1] + fit.bias)


STRENGTHS = (3.0, 10.0, 30.0, 100.0)


def candidates(rows: Rows, head: Head) -> Iterator[tuple[str, Head]]:
    """Yield what is chosen from on other digits, where pairs are known."""
    moments = rows.moments(balanced=True)
    edits = {"LEACE": folded(head, leace(moments))}
    for rank in (2, 8):
        edits[f"by class, rank {rank}"] = folded(head, top_directions(rows, rank))
    for which in ("pairs", "pair", "both"):
        columns = effects(rows, which)
        filters = wieners(moments, columns, STRENGTHS, shrinkage=SHRINKAGE)
        for strength, change in zip(STRENGTHS, filters, strict=True):
            edits[f"filter {strength:g} of {which}"] = folded(head, change)
            yield (
                f"discriminant {strength:g} of {which}",
                nuisance_head(rows.x, rows.labels, rows.weights, columns, strength),
            )
    for name, edited in edits.items():
        yield f"{name}, bias", with_bias(rows, edited)
