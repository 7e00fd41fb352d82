"""How well a heat map finds an object whose mask is known, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

GRID = 112
"""Side of the grid that maps and masks are compared on: every second pixel of 224."""

MEASURES = ("pointing", "IoU", "energy", "rank")


def enlarged(heat: Tensor) -> Tensor:
    """Return maps (n, h, w) on the grid, (n, grid, grid).

    Bicubic: between bilinear samples the maximum is always the middle of a cell of the map, between
    bicubic ones it moves towards the larger neighbours, which helps the coarsest maps most.
    """
    size = (GRID, GRID)
    return functional.interpolate(heat[:, None], size=size, mode="bicubic", antialias=False)[:, 0]


def on_grid(masks: Tensor) -> Tensor:
    """Return masks (n, H, W) on the grid: where the object covers half of a cell or more."""
    share = functional.interpolate(masks[:, None].float(), size=(GRID, GRID), mode="area")
    return share[:, 0] >= 0.5


def scores(heat: Tensor, masks: Tensor) -> Tensor:
    """Return the four measures of each map, (n, 4).

    pointing: whether the largest value lies in the object. IoU: of the object and as many largest
    values as it has cells, so that there is no threshold to choose. energy: share of the positive
    part of the map that lies in it. rank: share of the object's cells among that many largest
    values (relevance rank accuracy, Arras et al. 2022).

    Args:
        heat: (n, h, w).
        masks: (n, grid, grid).
    """
    flat, inside = enlarged(heat).flatten(1), masks.flatten(1)
    order = flat.argsort(dim=1, descending=True)
    area = inside.sum(1)
    first = torch.arange(flat.shape[1])[None] < area[:, None]
    hit = (inside.gather(1, order) & first).sum(1)
    positive = flat.clamp(min=0)
    energy = (positive * inside).sum(1) / positive.sum(1).clamp(min=torch.finfo(heat.dtype).tiny)
    pointing = inside.gather(1, order[:, :1])[:, 0].float()
    return torch.stack([pointing, hit / (2 * area - hit), energy, hit / area], 1)


@dataclass(frozen=True, eq=False)
class Table:
    """Scores of every method on the same pictures.

    Attributes:
        scores: (pictures, 4) by method.
        stamps: whose picture each is (pictures,); the bootstrap draws animals, not pictures.
    """

    scores: Mapping[str, Tensor]
    stamps: Tensor

    def lines(self, baseline: str, of_large: str, draws: int = 2000) -> list[str]:
        """Return a markdown row a method: means with 95 % intervals, and an arrow.

        It says that the interval of the paired difference from the baseline excludes zero; for what
        begins as `of_large` does, the baseline is that one.
        """
        weights, rows = self._weights(draws), []
        for name, values in self.scores.items():
            same_size = name.split(":")[0] == of_large.split(":")[0]
            paired = values - self.scores[of_large if same_size else baseline]
            cells = []
            for column in range(len(MEASURES)):
                mean, low, high = interval(weights, values[:, column])
                _, below, above = interval(weights, paired[:, column])
                mark = " ↑" if below > 0 else " ↓" if above < 0 else ""
                cells.append(f"{mean:.3f} [{low:.2f}, {high:.2f}]{mark}")
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        return rows

    def differences(self, names: Sequence[str], baseline: str, draws: int = 2000) -> list[str]:
        """Return a markdown row a method: paired differences from a baseline."""
        weights, rows = self._weights(draws), []
        for name in names:
            columns = (self.scores[name] - self.scores[baseline]).T
            intervals = [interval(weights, column) for column in columns]
            cells = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in intervals]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        return rows

    def _weights(self, draws: int) -> Tensor:
        """Return how much each picture counts in each draw of animals, (draws, pictures)."""
        animals = torch.unique(self.stamps)
        random = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(animals), (draws, len(animals)), generator=random)
        counts = torch.zeros(draws, len(animals)).scatter_add_(1, drawn, torch.ones(drawn.shape))
        weights = counts[:, torch.searchsorted(animals, self.stamps)]
        return weights / weights.sum(1, keepdim=True)


def interval(weights: Tensor, values: Tensor) -> tuple[float, float, float]:
    """Return the mean of values (pictures,) and its 95 % interval over the draws."""
    low, high = (weights @ values).quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(values.mean()), low, high
