"""Which classes the classifier itself takes for alike, as a tree, and the groups that it makes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from salve_plugin.control.assessment.batches import Head
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.kinds import several


@dataclass(frozen=True, repr=False)
class ClassTree(Tabular):
    """Classes joined two and two, the most alike first; no ontology that people made.

    Attributes:
        classes: names.
        joined: each join's two nodes: classes are numbered from 0, joins behind them in order.
        cosines: how alike the two are, the mean over pairs of their classes.
    """

    classes: tuple[str, ...]
    joined: tuple[tuple[int, int], ...]
    cosines: tuple[float, ...]

    def __repr__(self) -> str:
        """Say in one line which two classes are joined first."""
        first, second = (self.classes[node] for node in self.joined[0])
        return (
            f"<ClassTree of {len(self.classes)} classes by the classifier's rows: most alike are "
            f"{first!r:.60} and {second!r:.60}, cosine {self.cosines[0]:.2f}>"
        )

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The classes below each join, as they lie in the tree."""
        below: list[tuple[int, ...]] = [(label,) for label in range(len(self.classes))]
        for first, second in self.joined:
            below.append(below[first] + below[second])
        return tuple(below[len(self.classes) :])

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The classes of each join but the last, which has all; by the names that are joined."""
        named = {}
        for (first, second), own in list(zip(self.joined, self.members, strict=True))[:-1]:
            # By one class of either side: all of them would be a name that nobody reads.
            left, right = (self.classes[self._leaf(node)] for node in (first, second))
            named[f"{left} … {right} ({len(own)})"] = own
        return named

    def as_table(self) -> Table:
        """Return the tree from its root, one node a row, what lies below further right."""
        return Table(
            f"{len(self.classes)} classes by the classifier's rows",
            ("class", "cosine"),
            list(self._drawn(len(self.classes) + len(self.joined) - 1)),
            ("cosine of the rows less their mean, the mean over pairs of what is joined",),
        )

    def _leaf(self, node: int) -> int:
        return node if node < len(self.classes) else self.members[node - len(self.classes)][0]

    def _drawn(self, root: int) -> Iterator[tuple[str, float | None]]:
        nodes = [(root, 0)]  # no recursion: a chain of a thousand classes is as deep
        while nodes:
            node, depth = nodes.pop()
            join = node - len(self.classes)
            if join < 0:
                yield "· " * depth + self.classes[node], None
                continue
            yield "· " * depth + f"{len(self.members[join])} classes", self.cosines[join]
            nodes += [(below, depth + 1) for below in reversed(self.joined[join])]


def class_tree(hooked: HookedModel, classes: Sequence[str] | None = None) -> ClassTree:
    """Return the tree of a classifier's classes, by average linkage of its rows.

    Alike are two classes whose rows have a high cosine, each less the mean row, which adds the same
    to all logits and decides nothing. It says what this network takes for alike, from its weights
    alone: no image and no latent went into it, so that latents may be compared with its groups.

    Args:
        hooked: the attached model.
        classes: names by row; by default the rows' numbers.

    Raises:
        InputError: if the model's classifier is not known, has fewer than three classes, or there
            is not one name for each.
    """
    check_attached(hooked)
    head = Head.of(hooked)
    count = 0 if head is None else len(head.bias)
    own = map(str, range(count))
    names = several(own if classes is None else classes, "classes", "names of classes")
    if head is None or count < 3 or len(names) != count:
        raise InputError(
            f"a classifier of {count} known classes with {len(names)} names makes no tree; "
            "expected at least three classes, and a name for each"
        )
    rows = head.weight - head.weight.mean(0)
    # A row that is the mean row has no direction, and is like no other.
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    distance = (1 - rows @ rows.T).clamp(min=0)
    # Rounding leaves the product neither symmetric nor 1 on its diagonal: unchecked, only what is
    # above that is read.
    joins = linkage(squareform(distance.numpy(), checks=False), "average").tolist()
    return ClassTree(
        names,
        tuple((int(first), int(second)) for first, second, *_ in joins),
        # Of average linkage the height is the mean of 1 - cosine over all pairs that are joined.
        tuple(1 - height for _, _, height, _ in joins),
    )
