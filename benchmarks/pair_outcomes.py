"""What a head does on pairs of the same picture, without and with a planted attribute."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import planted
from benchmarks.erasures import CLASSES, Head, Rows


@dataclass(frozen=True)
class Tested:
    """Head inputs (n, width) of the same pictures without and with the attribute."""

    without: Tensor
    there: Tensor
    labels: Tensor
    digits: Tensor
    pair: tuple[int, int]

    @property
    def classes(self) -> Tensor:
        """The class of each digit, as (digits, classes) one-hot float64."""
        label = torch.zeros(int(self.digits.max()) + 1, dtype=torch.int64)
        label[self.digits] = self.labels
        return nn.functional.one_hot(label, CLASSES).double()

    def tally(self, head: Head) -> Tensor:
        """Count by digit: right without, right with, differing predictions, pairs (digits, 4)."""
        first, second = ((x @ head[0].T + head[1]).argmax(1) for x in (self.without, self.there))
        counts = [first == self.labels, second == self.labels, first != second]
        columns = torch.stack([*counts, torch.ones_like(counts[0])], 1).double()
        tally = torch.zeros(int(self.digits.max()) + 1, 4, dtype=torch.float64)
        return tally.index_add_(0, self.digits, columns)


@dataclass(frozen=True)
class Outcome:
    """What a head does on pairs: fields are (samples,), one value for each bootstrap sample.

    Attributes:
        flips: share of pairs whose prediction differs, of the two classes.
        flips_all: the same of all classes.
        worst: accuracy of the worst of the pair's four (class, attribute) groups.
        worst_all: the same of all groups.
        accuracy: with every group counting once.
        recorded: with the groups as frequent as they were planted.
    """

    flips: Tensor
    flips_all: Tensor
    worst: Tensor
    worst_all: Tensor
    accuracy: Tensor
    recorded: Tensor

    @classmethod
    def of(
        cls, tally: Tensor, classes: Tensor, pair: tuple[int, int], samples: Tensor | None = None
    ) -> "Outcome":
        """Put a tally by digit together; samples (samples, digits) say how often each counts."""
        samples = torch.ones(1, len(tally), dtype=torch.float64) if samples is None else samples
        # (samples, classes, 4)
        counts = torch.einsum("sd,dc,dk->sck", samples, classes, tally)
        groups = counts[:, :, :2] / counts[:, :, 3:].clamp(min=1)
        return cls.summary(groups, counts[:, :, 2], counts[:, :, 3], pair)

    @classmethod
    def summary(
        cls, groups: Tensor, differ: Tensor, number: Tensor, pair: tuple[int, int]
    ) -> "Outcome":
        """Summarize accuracies (samples, classes, 2) and how many of how many differ."""
        mine, often = list(pair), planted.OFTEN
        share = torch.full((CLASSES, 2), 0.5, dtype=torch.float64)
        share[mine] = torch.tensor([[1 - often, often], [often, 1 - often]]).double()
        return cls(
            differ[:, mine].sum(1) / number[:, mine].sum(1),
            differ.sum(1) / number.sum(1),
            groups[:, mine].amin((1, 2)),
            groups.amin((1, 2)),
            groups.mean((1, 2)),
            (groups * share).sum(2).mean(1),
        )

    def effect(self, before: "Outcome") -> Tensor:
        """Return percent and points of change (samples, 6), as in `COLUMNS`."""
        return 100 * torch.stack(
            [
                1 - self.flips / before.flips,
                1 - self.flips_all / before.flips_all,
                self.worst - before.worst,
                self.worst_all - before.worst_all,
                self.accuracy - before.accuracy,
                self.recorded - before.recorded,
            ],
            1,
        )


COLUMNS = ("flips", "all flips", "worst", "worst of all", "accuracy", "as planted")


def unpaired(head: Head, rows: Rows) -> Outcome:
    """Measure a head on labelled groups.

    In place of flips stands how much the predictions for a class's pictures with the attribute
    differ from those for its pictures without: the total variation distance.
    """
    predicted = (rows.x @ head[0].T + head[1]).argmax(1)
    table = torch.zeros(CLASSES, 2, CLASSES, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    table.index_put_((rows.labels, rows.has, predicted), one, accumulate=True)
    table = table / table.sum(2, keepdim=True).clamp(min=1)
    each = torch.arange(CLASSES)
    apart = (table[:, 0] - table[:, 1]).abs().sum(1) / 2
    return Outcome.summary(
        table[each, :, each][None], apart[None], torch.ones(1, CLASSES, dtype=torch.float64),
        rows.pair,
    )  # fmt: skip
